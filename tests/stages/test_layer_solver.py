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

CLOSED_FORM = (
    "codes.solver=exact",
    "layers.solver=least_squares",
    "joint.epochs=0",
    "layers.positions_per_image=99",  # all positions of the largest map, which has 64
    "codes.positions_per_image=99",
)
CHANNEL_BASIS = (*CLOSED_FORM, "codes.basis=channels")
AS_WIDE_AS_BOTH_TEACHERS = ("student.network=plain", "student.arguments.widths=[8, 12]")
"""A student as wide as both teachers together, which can compute exactly the same scores."""


def load_summary(folder: Path, stage: str) -> dict:
    return json.loads(stage_summary_path(folder, stage).read_text())


def load_weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(stage_summary_path(folder, stage).with_suffix(".safetensors"))


def load_images(inputs: StageInputs) -> torch.Tensor:
    store = inputs.store(FEATURES)
    return torch.from_numpy(store.gather(["image"], np.arange(len(store)))["image"])


def load_stacked_features(inputs: StageInputs, tap: str) -> np.ndarray:
    """Return the stacked features of all stored images and positions, ``[n, S]``, in float64."""
    store = inputs.store(FEATURES)
    maps = store.gather([tap], np.arange(len(store)))[tap].astype(np.float64)
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1])


@pytest.mark.parametrize("gib", [4, 0])
def test_a_given_ridge_is_used_in_every_layer(make_inputs, gib):
    inputs = make_inputs(*CHANNEL_BASIS, "layers.ridge=0.003", f"layers.max_gram_gib={gib}")
    run_stages(inputs)
    assert {layer["ridge"] for layer in load_summary(inputs.folder, "layers")["taps"].values()} == {0.003}


@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_exact_codes_have_the_least_possible_error(make_inputs, method):
    inputs = make_inputs(*CLOSED_FORM, f"codes.method={method}")
    run_stages(inputs)
    for tap, errors in load_summary(inputs.folder, "codes")["taps"].items():
        features = load_stacked_features(inputs, tap)
        eigenvalues = np.linalg.eigvalsh(np.cov(features.T, bias=True))[::-1]
        optimum = eigenvalues[errors["width"] :].sum() / eigenvalues.sum()
        assert errors["relative_error"] == pytest.approx(optimum, abs=1e-8)
        assert errors["optimal_relative_error"] == pytest.approx(optimum, abs=1e-10)
    (record,) = load_summary(inputs.folder, "codes")["history"]
    assert record["images"] == len(inputs.store(FEATURES))


@pytest.mark.parametrize("layer_inputs", ["codes", "student"])
@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_a_student_as_wide_as_both_teachers_reproduces_their_scores(make_inputs, method, layer_inputs):
    inputs = make_inputs(
        *CHANNEL_BASIS, *AS_WIDE_AS_BOTH_TEACHERS, f"codes.method={method}", f"layers.inputs={layer_inputs}"
    )
    run_stages(inputs)
    student = Student(inputs.plan.spec)
    student.load_state_dict(load_weights(inputs.folder, "joint"))
    images = load_images(inputs)
    with torch.no_grad():
        teacher_scores = [load_teacher(teacher).scores(images) for teacher in inputs.config.teachers]
        output, expected = student.eval()(images), torch.cat(teacher_scores, dim=1)
    assert (output - expected).abs().max() < 0.02 * expected.std()  # features are stored in half precision
    assert (output.argmax(1) == expected.argmax(1)).float().mean() > 0.99
    for tap, layer in load_summary(inputs.folder, "layers")["taps"].items():
        assert layer["relative_error"] < 1e-4, tap
        assert layer["ridge"] is not None


@pytest.mark.parametrize("method", ["direct", "incremental"])
def test_codes_of_channels_are_not_scaled(make_inputs, method):
    inputs = make_inputs(*CHANNEL_BASIS, f"codes.method={method}")
    run_stages(inputs)
    codes = load_summary(inputs.folder, "codes")["taps"]
    for tap, errors in codes.items():
        assert errors["relative_error"] >= errors["optimal_relative_error"] - 1e-9
        scale = load_weights(inputs.folder, "codes")[f"{tap}.scale"]
        assert scale == 1.0


def test_layers_solved_on_the_students_own_features_have_a_smaller_final_error(make_inputs, tmp_path):
    errors = {}
    for layer_inputs in ("codes", "student"):
        inputs = make_inputs(*CHANNEL_BASIS, f"layers.inputs={layer_inputs}")
        for stage in ("codes", "layers", "joint"):
            stage_summary_path(inputs.folder, stage).unlink(missing_ok=True)
        run_stages(inputs)
        student = Student(inputs.plan.spec)
        student.load_state_dict(load_weights(inputs.folder, "joint"))
        images = load_images(inputs)
        teacher_scores = [load_teacher(teacher).scores(images) for teacher in inputs.config.teachers]
        with torch.no_grad():
            difference = student.eval()(images) - torch.cat(teacher_scores, dim=1)
            errors[layer_inputs] = difference.square().mean().item()
    assert errors["student"] < errors["codes"]


def test_a_stage_that_is_not_linear_is_trained_by_sgd_and_has_no_ridge_in_the_summary(make_inputs):
    two_convs = "taps={conv2: {low: norm2, high: norm2, student: conv2}}"  # the stage to conv2 has two convs
    inputs = make_inputs(*CHANNEL_BASIS, two_convs, "layers.epochs=2")
    run_stages(inputs)
    layers = load_summary(inputs.folder, "layers")
    assert layers["taps"]["conv2"]["ridge"] is None
    assert layers["taps"]["scores"]["ridge"] is not None
    assert [set(record["losses"]) for record in layers["history"]] == [{"scores"}, {"conv2"}, {"conv2"}]
    assert layers["history"][-1]["images"] == 3 * len(inputs.store(FEATURES))


def test_without_joint_epochs_the_student_keeps_the_weights_of_the_stage_layers(make_inputs):
    inputs = make_inputs(*CHANNEL_BASIS)
    run_stages(inputs)
    before, after = load_weights(inputs.folder, "layers"), load_weights(inputs.folder, "joint")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert load_summary(inputs.folder, "joint")["history"] == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["codes.basis=channels", "codes.solver=sgd"], "set solver: exact"),
        (["codes={method: common_features, solver: exact}"], "common_features has no closed form"),
        (["layers.inputs=student"], "set solver: least_squares"),
    ],
)
def test_incompatible_solver_settings_are_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(*overrides)
