"""Test the three stages in one process: their files, and that finished stages are not repeated."""

import copy
import hashlib
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ka_ray.features.store import FEATURES
from ka_ray.stages import joint, joint_attempts, list_stages, run_stages
from ka_ray.stages.inputs import StageInputs, epoch_students_folder, load_stage, stage_summary_path
from ka_ray.student import Student, load_student
from ka_ray.training import Progress

NUM_IMAGES = 256
WITH_BATCH_NORMS = (
    "student={network: 'ka_ray.teachers.plain:plain_conv_net', arguments: {num_classes: 10, widths: [4, 6]}}",
    "taps={first: {low: norm1, high: norm1, student: norm1},"
    " second: {low: norm2, high: norm2, student: act2}}",
)
"""A student with batch norms that is cut by torch.fx. The adapter at ``second`` cannot be folded."""


@pytest.fixture
def inputs(make_inputs) -> StageInputs:
    return make_inputs()


def load_summary(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads(stage_summary_path(folder, stage).read_text())


def load_weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(stage_summary_path(folder, stage).with_suffix(".safetensors"))


@pytest.mark.parametrize("overrides", [(), WITH_BATCH_NORMS], ids=["network family", "cut, with batch norms"])
def test_every_stage_lowers_its_loss_and_writes_its_weights(make_inputs, overrides):
    inputs = make_inputs(*overrides)
    run_stages(inputs)
    for stage in list_stages(inputs.config):
        history = load_summary(inputs.folder, stage)["history"]
        losses = [sum(record["losses"].values()) for record in history]
        assert len(losses) == getattr(inputs.config, stage).epochs
        assert losses[-1] < losses[0]
    Student(inputs.plan.spec).load_state_dict(load_weights(inputs.folder, "joint"))
    assert not list(inputs.folder.rglob("*.part"))


def test_the_summary_has_the_error_of_every_tap_and_the_least_possible_one(inputs):
    run_stages(inputs)
    taps = load_summary(inputs.folder, "codes")["taps"]
    assert taps.keys() == inputs.plan.spec.widths.keys()
    for tap, errors in taps.items():
        assert errors["width"] == inputs.plan.spec.widths[tap]
        assert errors["stacked"] == inputs.plan.shapes[tap][0]
        assert 0 < errors["optimal_relative_error"] <= errors["relative_error"] < 1
    layers = load_summary(inputs.folder, "layers")["taps"]
    assert layers.keys() == {*taps, "scores"}


def test_the_codes_summary_names_teachers_and_shapes(inputs):
    run_stages(inputs)
    codes = load_summary(inputs.folder, "codes")
    assert codes["shapes"] == {
        "conv1": {"paths": ["norm1"] * 2, "channels": [4, 4], "space": [8, 8], "width": 4},
        "conv2": {"paths": ["norm2"] * 2, "channels": [6, 6], "space": [4, 4], "width": 6},
    }
    assert (codes["links"]["reused"], codes["links"]["trained"]) == (0, 1)
    assert codes["teachers"] == {
        teacher.name: hashlib.sha256(teacher.checkpoint.read_bytes()).hexdigest()
        for teacher in inputs.config.teachers
    }


def run_and_list_trained(inputs: StageInputs) -> list[str]:
    """Run the stages and return the names of those that trained."""
    reports: list[Progress] = []
    run_stages(replace(inputs, report=reports.append))
    return list(dict.fromkeys(progress.stage for progress in reports))


def test_finished_stages_are_not_repeated(inputs):
    assert run_and_list_trained(inputs) == ["codes", "layers", "joint"]
    assert run_and_list_trained(inputs) == []
    stage_summary_path(inputs.folder, "joint").unlink()
    assert run_and_list_trained(inputs) == ["joint"]


def test_a_repeated_stage_gives_the_same_weights(inputs):
    run_stages(inputs)
    path = stage_summary_path(inputs.folder, "layers").with_suffix(".safetensors")
    before = path.read_bytes()
    stage_summary_path(inputs.folder, "layers").unlink()
    path.unlink()
    run_stages(inputs)
    assert path.read_bytes() == before


def test_two_runs_on_the_same_data_write_the_same_weights_into_separate_folders(inputs):
    for name in ("first", "second"):
        assert run_and_list_trained(replace(inputs, folder=inputs.data / name)) == [
            *list_stages(inputs.config)
        ]
    assert not (inputs.data / "stages").exists()
    first, second = (load_weights(inputs.data / name, "joint") for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def students_before_joint_learning(
    inputs: StageInputs, monkeypatch: pytest.MonkeyPatch
) -> tuple[Student, Student]:
    """Run all stages, and return the student at the end of `layers` and at the start of joint learning."""
    at_start: list[Student] = []
    original_fit = joint_attempts.fit

    def fit(learner: nn.Module, *others: Any) -> list[Progress]:
        if others[1].stage == "joint":
            at_start.append(copy.deepcopy(learner.student).eval())
        return original_fit(learner, *others)

    monkeypatch.setattr(joint_attempts, "fit", fit)
    run_stages(inputs)
    folded = Student(inputs.plan.spec)
    load_stage(inputs.folder, "layers", folded)
    return folded.eval(), at_start[0]


def batch_norm_inputs(student: Student, pixels: np.ndarray) -> list[tuple[nn.BatchNorm2d, np.ndarray]]:
    """Return each batch norm with all its inputs, ``[positions, C]``."""
    norm_inputs: list[tuple[nn.BatchNorm2d, np.ndarray]] = []
    for norm in (module for module in student.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_pre_hook(
            lambda norm, given: norm_inputs.append((norm, given[0].double().numpy().transpose(0, 2, 3, 1)))
        )
    with torch.no_grad():
        student(torch.from_numpy(pixels))
    return [(norm, maps.reshape(-1, maps.shape[-1])) for norm, maps in norm_inputs]


def stored_pixels(inputs: StageInputs) -> np.ndarray:
    return inputs.store(FEATURES).gather(["image"], np.arange(NUM_IMAGES))["image"]


def test_joint_learning_starts_with_batch_norms_recalibrated_on_the_students_own_features(
    make_inputs, monkeypatch
):
    inputs = make_inputs(*WITH_BATCH_NORMS)
    folded, at_start = students_before_joint_learning(inputs, monkeypatch)
    pixels = stored_pixels(inputs)
    with torch.no_grad():
        expected = folded(torch.from_numpy(pixels))
        torch.testing.assert_close(at_start(torch.from_numpy(pixels)), expected, rtol=1e-4, atol=1e-4)
    own = batch_norm_inputs(at_start, pixels)
    assert len(own) == 2
    for norm, values in own:
        np.testing.assert_allclose(norm.running_mean, values.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(norm.running_var, values.var(0), rtol=1e-4)
    variance_errors = [np.abs(norm.running_var.numpy() / values.var(0) - 1).max() for norm, values in own]
    before = batch_norm_inputs(folded, pixels)
    assert (
        max(variance_errors)
        < 1e-3
        < max(np.abs(n.running_var.numpy() / v.var(0) - 1).max() for n, v in before)
    )


def test_batch_norms_are_recalibrated_on_shuffled_images(make_inputs, monkeypatch):
    monkeypatch.setattr(joint, "RECALIBRATION_BATCHES", 2)  # of 8 batches per epoch
    rng = np.random.default_rng(0)
    # Images in one folder per class are sorted, too.
    brightness = np.linspace(0, 150, NUM_IMAGES)[:, None, None, None]
    pixels = (brightness + rng.integers(0, 100, (NUM_IMAGES, 3, 8, 8))).astype(np.uint8)
    inputs = make_inputs(*WITH_BATCH_NORMS, pixels=pixels)
    _, at_start = students_before_joint_learning(inputs, monkeypatch)
    for norm, values in batch_norm_inputs(at_start, pixels):
        assert (np.abs(norm.running_mean.numpy() - values.mean(0)) < 0.4 * values.std(0)).all()
        assert (norm.running_var.numpy() > 0.6 * values.var(0)).all()


def test_a_joint_batch_may_be_larger_than_the_images_with_features(make_inputs):
    inputs = make_inputs(*WITH_BATCH_NORMS, "codes.batch_size=8", "layers.batch_size=8", num_features=24)
    run_stages(inputs)
    assert [record["images"] for record in load_summary(inputs.folder, "joint")["history"]] == [256, 512, 768]


def test_a_student_without_batch_norms_starts_joint_learning_unchanged(inputs, monkeypatch):
    folded, at_start = students_before_joint_learning(inputs, monkeypatch)
    assert all(torch.equal(t, at_start.state_dict()[name]) for name, t in folded.state_dict().items())


@pytest.mark.parametrize("overrides", [(), WITH_BATCH_NORMS], ids=["network family", "cut, with batch norms"])
def test_the_student_of_every_epoch_is_saved_if_the_config_asks_for_it(make_inputs, overrides):
    # The 600 images are 8 + 8 + 2 batches of 32.
    inputs = make_inputs("evaluation.each_epoch=true", "joint.images=600", *overrides)
    run_stages(inputs)
    folders = sorted(epoch_students_folder(inputs.folder).iterdir())
    assert [folder.name for folder in folders] == ["001", "002", "003"]
    kept = [load_student(folder).state_dict() for folder in folders]
    assert kept[-1].keys() == load_weights(inputs.folder, "joint").keys()
    assert all(torch.equal(kept[-1][name], t) for name, t in load_weights(inputs.folder, "joint").items())
    trained = [name for name in kept[0] if name.endswith("weight")]
    for earlier, later in pairwise(kept):
        assert not any(torch.equal(earlier[name], later[name]) for name in trained)


def test_students_of_epochs_are_not_saved_by_default(inputs):
    run_stages(inputs)
    assert not epoch_students_folder(inputs.folder).exists()


# Whole batches of 32 images, and at least one batch.
@pytest.mark.parametrize(("images", "cumulative"), [(600, [256, 512, 576]), (256, [256]), (5, [32])])
def test_joint_learning_stops_after_its_budget_of_images(make_inputs, images, cumulative):
    inputs = make_inputs(f"joint.images={images}")
    run_stages(inputs)
    assert [record["images"] for record in load_summary(inputs.folder, "joint")["history"]] == cumulative
    assert len(load_summary(inputs.folder, "layers")["history"]) == 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"codes": 0.95, "layers": 0.95, "joint": 0.999}),
        (
            ("codes.beta2=0.9", "layers.beta2=0.99", "joint.beta2=0.5"),
            {"codes": 0.9, "layers": 0.99, "joint": 0.5},
        ),
    ],
    ids=["by default", "in the config"],
)
def test_beta2_of_every_stage_is_that_of_its_section(make_inputs, overrides, expected):
    inputs = make_inputs(*overrides)
    assert {stage: inputs.settings(stage).beta2 for stage in list_stages(inputs.config)} == expected
