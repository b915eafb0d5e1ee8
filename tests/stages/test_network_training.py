"""Test that joint learning and a teacher's training do what the options of their sections say."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor

from ka_ray.config import JointConfig, NetworkTrainingConfig, TeachingConfig
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import StageInputs, epoch_students_folder, stage_summary_path
from ka_ray.stages.teacher import _fit_settings, teacher_checkpoint_path, train_teacher
from ka_ray.stages.trial import _train_jointly
from ka_ray.student import Student, load_student
from ka_ray.training import FitSettings
from ka_ray.training.optimizer import learning_rate_factor

OTHERS = {
    "layer_decay": 0.7,
    "warmup": 0.2,
    "weight_decay": 0.3,
    "batch_norms": "frozen",
    "clip_norm": 2.0,
    "amp": "bf16",
}
"""Another value than the default for every option that is a setting of the training loop."""

DISTILL = ("baseline=distill", "joint.learning_rate=0.01")


def overrides_of(section: str, options: dict) -> list[str]:
    return [f"{section}.{key}={value}" for key, value in options.items()]


def options_of(settings: FitSettings) -> dict:
    return {key: getattr(settings, key) for key in OTHERS}


def run_joint(inputs: StageInputs) -> dict[str, Tensor]:
    run_stages(inputs)
    path = stage_summary_path(inputs.folder, "joint")
    path.unlink()  # so that the stage runs again
    return load_file(path.with_suffix(".safetensors"))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


def test_the_section_has_an_option_more_than_the_loop_for_average_and_compiler():
    assert NetworkTrainingConfig.model_fields.keys() == {*OTHERS, "ema", "compile"}


def test_options_of_joint_learning_reach_its_loop_only(make_inputs):
    inputs = make_inputs(*overrides_of("joint", OTHERS))
    assert options_of(inputs.settings("joint")) == OTHERS
    assert not inputs.settings("joint").decay_biases
    defaults = options_of(FitSettings("codes", 1, 0.1))
    for stage in ("codes", "layers"):
        assert options_of(inputs.settings(stage)) == defaults
    assert options_of(make_inputs().settings("joint")) == defaults


def test_options_of_a_teacher_reach_its_loop(load_config, tmp_path):
    training = ("teachers.0.checkpoint=null", "teachers.0.training.epochs=1")
    changed = load_config(*training, *overrides_of("teachers.0.training", OTHERS)).teachers[0]
    assert options_of(_fit_settings(changed, tmp_path)) == OTHERS
    by_default = _fit_settings(load_config(*training).teachers[0], tmp_path)
    assert options_of(by_default) == options_of(FitSettings("a", 1, 0.1, weight_decay=5e-4))
    assert by_default.decay_biases  # as every teacher so far was trained


def test_both_sections_share_one_class_of_options():
    assert issubclass(JointConfig, NetworkTrainingConfig)
    assert issubclass(TeachingConfig, NetworkTrainingConfig)


def test_with_a_moving_average_the_averaged_student_is_the_result(make_inputs):
    inputs = make_inputs(*DISTILL, "joint.ema=0.8", "joint.epochs=2", "evaluation.each_epoch=true")
    found = run_joint(inputs)
    torch.manual_seed(inputs.config.seed)
    student = Student(inputs.plan.spec)
    optimizer = torch.optim.AdamW(student.parameters(), 0.01, weight_decay=0)
    batches = inputs.batches("joint", inputs.store(FEATURES, IMAGES), ["image", "scores"])
    averages: list[dict[str, Tensor]] = []
    for step, batch in enumerate(b for epoch in (1, 2) for b in batches.epoch(epoch)):
        optimizer.param_groups[0]["lr"] = 0.01 * learning_rate_factor(step, 2 * batches.steps_per_epoch)
        optimizer.zero_grad()
        (student(batch["image"]) - batch["scores"]).square().mean().div(2).backward()
        optimizer.step()
        decay = min(0.8, (1 + step) / (10 + step)) if step else 0.0
        earlier = averages[-1] if step else student.state_dict()
        now = student.state_dict()
        averages.append(
            {
                name: decay * earlier[name] + (1 - decay) * now[name]
                if now[name].is_floating_point()
                else now[name]
                for name in now
            }
        )
    assert_close(found, averages[-1], 1e-4)
    first, last = (load_student(epoch_students_folder(inputs.folder) / name) for name in ("001", "002"))
    assert_close(first.state_dict(), averages[batches.steps_per_epoch - 1], 1e-4)
    assert all(torch.equal(found[name], tensor) for name, tensor in last.state_dict().items())


def test_joint_learning_in_bf16_is_close_to_that_in_float32(make_inputs):
    runs = [
        run_joint(make_inputs(*DISTILL, f"joint.amp={amp}", "joint.epochs=2")) for amp in ("none", "bf16")
    ]
    assert all(tensor.dtype == runs[0][name].dtype for name, tensor in runs[1].items())
    assert_close(runs[1], runs[0], 0.03)
    assert any(not torch.equal(tensor, runs[0][name]) for name, tensor in runs[1].items())


def test_joint_learning_in_fp16_without_a_gpu_is_refused(make_inputs):
    with pytest.raises(InputError, match="stage joint, amp: fp16 needs a GPU"):
        run_joint(make_inputs(*DISTILL, "joint.amp=fp16"))


def test_a_compiled_student_is_saved_under_the_same_names_and_learns_the_same(make_inputs, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    runs = [run_joint(make_inputs(*DISTILL, f"joint.compile={flag}")) for flag in ("false", "true")]
    assert_close(runs[1], runs[0], 1e-4)


def test_trials_of_tune_are_judged_by_the_averaged_student(make_inputs):
    inputs = make_inputs(*DISTILL, "joint.ema=0.9", "joint.epochs=1")
    student, reported = Student(inputs.plan.spec), []
    _train_jointly(inputs, student, 0.01, lambda judged, epoch: reported.append((judged, epoch)))
    ((judged, epoch),) = reported
    assert epoch == 1
    assert isinstance(judged, Student)
    weights = judged.state_dict(), student.state_dict()
    assert not torch.equal(*(states["stages.conv1.0.weight"] for states in weights))


@pytest.mark.parametrize(("ema", "is_last"), [("1e-9", True), ("0.9", False)])
def test_a_teacher_with_a_moving_average_has_the_averaged_weights(
    load_config, make_store, tmp_path, ema, is_last
):
    digits = load_digits()
    grey = np.round(digits.images[:120] * 255 / 16).astype(np.uint8)
    labels = np.array([f"digit_{target}" for target in digits.target[:120]], dtype=object)
    pixels = np.repeat(grey[:, None], 3, axis=1)
    make_store({"image_id": np.arange(120), "image": pixels, "label": labels}, folder="images")
    weights = []
    for average in ("null", ema):
        config = load_config(
            *("teachers.0.checkpoint=null", "teachers.0.training.batch_size=30"),
            *(f"teachers.0.training.ema={average}", "teachers.0.training.epochs=2"),
        )
        folder = tmp_path / average
        train_teacher(
            config.teachers[0], tmp_path / "images", folder, 0, torch.device("cpu"), lambda progress: None
        )
        weights.append(load_file(teacher_checkpoint_path(folder, "low")))
    differences = [(weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]]
    assert (max(differences) < 1e-6) == is_last
