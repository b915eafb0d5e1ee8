"""Test stages that are solved in closed form, against numpy and against the teachers' own scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.student import Student
from ka_ray.teachers import load_teacher

EXACT = (
    "codes.solver=exact",
    "layers.solver=least_squares",
    "joint.epochs=0",
    "layers.positions_per_image=99",
    "codes.positions_per_image=99",
)
CHANNELS = (*EXACT, "codes.basis=channels")
BOTH = ("student.network=plain", "student.arguments.widths=[8, 12]")
"""A student as wide as both teachers together, which can compute exactly the same."""


def summary(folder: Path, stage: str) -> dict:
    return json.loads(stage_summary_path(folder, stage).read_text())


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(stage_summary_path(folder, stage).with_suffix(".safetensors"))


def images_of(inputs: StageInputs) -> torch.Tensor:
    store = inputs.store(FEATURES)
    return torch.from_numpy(store.gather(["image"], np.arange(len(store)))["image"])


def stored(inputs: StageInputs, tap: str) -> np.ndarray:
    """Return the stacked features of all stored images and positions, ``[n, S]``, in float64."""
    store = inputs.store(FEATURES)
    maps = store.gather([tap], np.arange(len(store)))[tap].astype(np.float64)
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


@pytest.mark.parametrize("gib", [4, 0])
def test_a_given_ridge_is_used_in_every_layer(inputs_for, gib):
    inputs = inputs_for(*CHANNELS, "layers.ridge=0.003", f"layers.max_gram_gib={gib}")
    run_stages(inputs)
    assert {layer["ridge"] for layer in summary(inputs.folder, "layers")["taps"].values()} == {0.003}


@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_exact_codes_have_the_least_error_by_numpy(inputs_for, method):
    inputs = inputs_for(*EXACT, f"codes.method={method}")
    run_stages(inputs)
    for tap, errors in summary(inputs.folder, "codes")["taps"].items():
        features = stored(inputs, tap)
        eigenvalues = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
        least = eigenvalues[errors["width"] :].sum() / eigenvalues.sum()
        assert errors["relative_error"] == pytest.approx(least, abs=1e-8)
        assert errors["optimal_relative_error"] == pytest.approx(least, abs=1e-10)
    (record,) = summary(inputs.folder, "codes")["history"]
    assert record["images"] == len(inputs.store(FEATURES))


@pytest.mark.parametrize("layer_inputs", ["codes", "student"])
@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_a_student_as_wide_as_both_teachers_reproduces_both(inputs_for, method, layer_inputs):
    inputs = inputs_for(*CHANNELS, *BOTH, f"codes.method={method}", f"layers.inputs={layer_inputs}")
    run_stages(inputs)
    student = Student(inputs.plan.spec)
    student.load_state_dict(weights(inputs.folder, "joint"))
    images = images_of(inputs)
    with torch.no_grad():
        teacher_scores = [load_teacher(teacher).scores(images) for teacher in inputs.config.teachers]
        output, expected = student.eval()(images), torch.cat(teacher_scores, dim=1)
    assert (output - expected).abs().max() < 0.02 * expected.std()  # features are stored in half precision
    assert (output.argmax(1) == expected.argmax(1)).float().mean() > 0.99
    for tap, layer in summary(inputs.folder, "layers")["taps"].items():
        assert layer["relative_error"] < 1e-4, tap
        assert layer["ridge"] is not None


@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_codes_of_channels_are_not_scaled(inputs_for, method):
    inputs = inputs_for(*CHANNELS, f"codes.method={method}")
    run_stages(inputs)
    codes = summary(inputs.folder, "codes")["taps"]
    for tap, errors in codes.items():
        assert errors["relative_error"] >= errors["optimal_relative_error"] - 1e-9
        scale = weights(inputs.folder, "codes")[f"{tap}.scale"]
        assert scale == 1.0


def test_layers_solved_on_the_students_own_features_have_a_smaller_final_error(inputs_for, tmp_path):
    errors = {}
    for layer_inputs in ("codes", "student"):
        inputs = inputs_for(*CHANNELS, f"layers.inputs={layer_inputs}")
        for stage in ("codes", "layers", "joint"):
            stage_summary_path(inputs.folder, stage).unlink(missing_ok=True)
        run_stages(inputs)
        student = Student(inputs.plan.spec)
        student.load_state_dict(weights(inputs.folder, "joint"))
        images = images_of(inputs)
        teacher_scores = [load_teacher(teacher).scores(images) for teacher in inputs.config.teachers]
        with torch.no_grad():
            difference = student.eval()(images) - torch.cat(teacher_scores, dim=1)
            errors[layer_inputs] = difference.square().mean().item()
    assert errors["student"] < errors["codes"]


def test_a_stage_that_is_not_linear_is_trained_by_sgd_and_reported_so(inputs_for):
    deep = "taps={conv2: {low: norm2, high: norm2, student: conv2}}"  # the stage to conv2 has two convs
    inputs = inputs_for(*CHANNELS, deep, "layers.epochs=2")
    run_stages(inputs)
    layers = summary(inputs.folder, "layers")
    assert layers["taps"]["conv2"]["ridge"] is None
    assert layers["taps"]["scores"]["ridge"] is not None
    assert [set(record["losses"]) for record in layers["history"]] == [{"scores"}, {"conv2"}, {"conv2"}]
    assert layers["history"][-1]["images"] == 3 * len(inputs.store(FEATURES))


def test_without_joint_epochs_the_student_keeps_its_layers_weights(inputs_for):
    inputs = inputs_for(*CHANNELS)
    run_stages(inputs)
    before, after = weights(inputs.folder, "layers"), weights(inputs.folder, "joint")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert summary(inputs.folder, "joint")["history"] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codes.basis=channels"], "set solver: exact"),
        (["codes={method: common_features, solver: exact}"], "common_features has no closed form"),
        (["layers.inputs=student"], "set solver: least_squares"),
    ],
)
def test_incompatible_solvers_are_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(*overrides)
