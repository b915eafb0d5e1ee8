"""The three stages in one process: what each leaves, and that what stands is not repeated."""

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
from ka_ray.stages import STAGES, joint, run_stages
from ka_ray.stages.inputs import StageInputs, epoch_students_folder, load_stage, stage_summary_path
from ka_ray.student import Student, load_student
from ka_ray.training import Progress

NUM_IMAGES = 256
WITH_NORMS = (
    "student={network: 'ka_ray.teachers.plain:plain_conv_net', arguments: {num_classes: 10, widths: [4, 6]}}",
    "taps={first: {low: norm1, high: norm1, student: norm1},"
    " second: {low: norm2, high: norm2, student: act2}}",
)
"""A student cut by torch.fx, with batch norms; at ``second`` its adapter is kept."""


@pytest.fixture
def inputs(inputs_for) -> StageInputs:
    return inputs_for()


def summary(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads(stage_summary_path(folder, stage).read_text())


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(stage_summary_path(folder, stage).with_suffix(".safetensors"))


@pytest.mark.parametrize("overrides", [(), WITH_NORMS], ids=["a family", "cut, with norms"])
def test_every_stage_learns_and_leaves_its_weights(inputs_for, overrides):
    inputs = inputs_for(*overrides)
    run_stages(inputs)
    for stage in STAGES:
        history = summary(inputs.folder, stage)["history"]
        losses = [sum(record["losses"].values()) for record in history]
        assert len(losses) == getattr(inputs.config, stage).epochs
        assert losses[-1] < losses[0]
    Student(inputs.plan.spec).load_state_dict(weights(inputs.folder, "joint"))
    assert not list(inputs.folder.rglob("*.part"))


def test_every_tap_is_judged_against_its_optimum(inputs):
    run_stages(inputs)
    taps = summary(inputs.folder, "codes")["taps"]
    assert taps.keys() == inputs.plan.spec.widths.keys()
    for tap, judged in taps.items():
        assert judged["width"] == inputs.plan.spec.widths[tap]
        assert judged["stacked"] == inputs.plan.shapes[tap][0]
        assert 0 < judged["optimal_relative_error"] <= judged["relative_error"] < 1
    layers = summary(inputs.folder, "layers")["taps"]
    assert layers.keys() == {*taps, "scores"}


def test_the_codes_say_what_they_were_made_from(inputs):
    run_stages(inputs)
    codes = summary(inputs.folder, "codes")
    assert codes["shapes"] == {
        "conv1": {"paths": ["norm1"] * 2, "channels": [4, 4], "space": [8, 8], "width": 4},
        "conv2": {"paths": ["norm2"] * 2, "channels": [6, 6], "space": [4, 4], "width": 6},
    }
    assert (codes["links"]["reused"], codes["links"]["trained"]) == (0, 1)
    assert codes["teachers"] == {
        teacher.name: hashlib.sha256(teacher.checkpoint.read_bytes()).hexdigest()
        for teacher in inputs.config.teachers
    }


def told_stages(inputs: StageInputs) -> list[str]:
    """Run the stages; which of them trained."""
    told: list[Progress] = []
    run_stages(replace(inputs, report=told.append))
    return list(dict.fromkeys(progress.stage for progress in told))


def test_what_stands_is_not_repeated(inputs):
    assert told_stages(inputs) == ["codes", "layers", "joint"]
    assert told_stages(inputs) == []
    stage_summary_path(inputs.folder, "joint").unlink()
    assert told_stages(inputs) == ["joint"]


def test_a_repeated_stage_gives_the_same_weights(inputs):
    run_stages(inputs)
    path = stage_summary_path(inputs.folder, "layers").with_suffix(".safetensors")
    before = path.read_bytes()
    stage_summary_path(inputs.folder, "layers").unlink()
    path.unlink()
    run_stages(inputs)
    assert path.read_bytes() == before


def test_runs_that_share_their_data_leave_the_same_in_folders_of_their_own(inputs):
    for name in ("first", "second"):
        assert told_stages(replace(inputs, folder=inputs.data / name)) == [*STAGES]
    assert not (inputs.data / "stages").exists()
    first, second = (weights(inputs.data / name, "joint") for name in ("first", "second"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def before_joint_learning(inputs: StageInputs, monkeypatch: pytest.MonkeyPatch) -> tuple[Student, Student]:
    """Run codes and layers: the student as its layers left it, and as joint learning begins with it."""
    begun: list[Student] = []
    true_fit = joint.fit

    def fit(learner: nn.Module, *others: Any) -> list[Progress]:
        if others[1].stage == "joint":
            begun.append(copy.deepcopy(learner.student).eval())
        return true_fit(learner, *others)

    monkeypatch.setattr(joint, "fit", fit)
    run_stages(inputs)
    folded = Student(inputs.plan.spec)
    load_stage(inputs.folder, "layers", folded)
    return folded.eval(), begun[0]


def inputs_of_norms(student: Student, pixels: np.ndarray) -> list[tuple[nn.BatchNorm2d, np.ndarray]]:
    """Every batch norm with all that it is given, ``[positions, C]``."""
    seen: list[tuple[nn.BatchNorm2d, np.ndarray]] = []
    for norm in (module for module in student.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.register_forward_pre_hook(
            lambda norm, given: seen.append((norm, given[0].double().numpy().transpose(0, 2, 3, 1)))
        )
    with torch.no_grad():
        student(torch.from_numpy(pixels))
    return [(norm, maps.reshape(-1, maps.shape[-1])) for norm, maps in seen]


def stored_pixels(inputs: StageInputs) -> np.ndarray:
    return inputs.store(FEATURES).gather(["image"], np.arange(NUM_IMAGES))["image"]


def test_joint_learning_starts_from_norms_settled_on_the_students_own_features(inputs_for, monkeypatch):
    inputs = inputs_for(*WITH_NORMS)
    folded, begun = before_joint_learning(inputs, monkeypatch)
    pixels = stored_pixels(inputs)
    with torch.no_grad():
        expected = folded(torch.from_numpy(pixels))
        torch.testing.assert_close(begun(torch.from_numpy(pixels)), expected, rtol=1e-4, atol=1e-4)
    own = inputs_of_norms(begun, pixels)
    assert len(own) == 2
    for norm, values in own:
        np.testing.assert_allclose(norm.running_mean, values.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(norm.running_var, values.var(0), rtol=1e-4)
    off = [np.abs(norm.running_var.numpy() / values.var(0) - 1).max() for norm, values in own]
    before = inputs_of_norms(folded, pixels)
    assert max(off) < 1e-3 < max(np.abs(n.running_var.numpy() / v.var(0) - 1).max() for n, v in before)


def test_norms_settle_on_images_of_all_kinds_though_the_stored_ones_are_sorted(inputs_for, monkeypatch):
    monkeypatch.setattr(joint, "RECALIBRATION_BATCHES", 2)  # of 8
    rng = np.random.default_rng(0)
    brightness = np.linspace(0, 150, NUM_IMAGES)[:, None, None, None]  # as folders sort by class
    pixels = (brightness + rng.integers(0, 100, (NUM_IMAGES, 3, 8, 8))).astype(np.uint8)
    inputs = inputs_for(*WITH_NORMS, pixels=pixels)
    _, begun = before_joint_learning(inputs, monkeypatch)
    for norm, values in inputs_of_norms(begun, pixels):
        assert (np.abs(norm.running_mean.numpy() - values.mean(0)) < 0.4 * values.std(0)).all()
        assert (norm.running_var.numpy() > 0.6 * values.var(0)).all()


def test_a_joint_batch_may_be_larger_than_the_images_with_features(inputs_for):
    inputs = inputs_for(*WITH_NORMS, "codes.batch_size=8", "layers.batch_size=8", num_features=24)
    run_stages(inputs)
    assert [record["images"] for record in summary(inputs.folder, "joint")["history"]] == [256, 512, 768]


def test_a_student_without_norms_starts_joint_learning_as_its_layers_left_it(inputs, monkeypatch):
    folded, begun = before_joint_learning(inputs, monkeypatch)
    assert all(torch.equal(t, begun.state_dict()[name]) for name, t in folded.state_dict().items())


@pytest.mark.parametrize("overrides", [(), WITH_NORMS], ids=["a family", "cut, with norms"])
def test_the_student_of_every_epoch_is_kept_if_asked_for(inputs_for, overrides):
    inputs = inputs_for("evaluation.each_epoch=true", "joint.images=600", *overrides)  # 8 + 8 + 2 steps
    run_stages(inputs)
    folders = sorted(epoch_students_folder(inputs.folder).iterdir())
    assert [folder.name for folder in folders] == ["001", "002", "003"]
    kept = [load_student(folder).state_dict() for folder in folders]
    assert kept[-1].keys() == weights(inputs.folder, "joint").keys()
    assert all(torch.equal(kept[-1][name], t) for name, t in weights(inputs.folder, "joint").items())
    trained = [name for name in kept[0] if name.endswith("weight")]
    for earlier, later in pairwise(kept):
        assert not any(torch.equal(earlier[name], later[name]) for name in trained)


def test_no_epochs_are_kept_unasked(inputs):
    run_stages(inputs)
    assert not epoch_students_folder(inputs.folder).exists()


@pytest.mark.parametrize(("images", "seen"), [(600, [256, 512, 576]), (256, [256]), (5, [32])])
def test_joint_learning_stops_after_its_budget_of_images(inputs_for, images, seen):
    inputs = inputs_for(f"joint.images={images}")
    run_stages(inputs)
    assert [record["images"] for record in summary(inputs.folder, "joint")["history"]] == seen
    assert len(summary(inputs.folder, "layers")["history"]) == 2
