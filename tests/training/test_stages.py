"""The three stages in one process: what each leaves, and that what stands is not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from ka_ray.features.store import FEATURES, finish_folder, start_folder, write_shard
from ka_ray.plan import make_plan
from ka_ray.student import Student
from ka_ray.teachers import load_teacher
from ka_ray.training import Progress
from ka_ray.training.stages import STAGES, StageInputs, run_stages, stage_file

NUM_IMAGES = 256


@pytest.fixture
def inputs(load_config, tmp_path) -> StageInputs:
    """A run whose features have been extracted, one teacher after the other."""
    config = load_config("codes.epochs=3", "layers.epochs=2", "joint.epochs=3", "joint.batch_size=32")
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    plan = make_plan(config, teachers)
    grey = np.round(load_digits().images[:NUM_IMAGES] * 255 / 16).astype(np.uint8)
    columns = {"image_id": np.arange(NUM_IMAGES), "image": np.repeat(grey[:, None], 3, axis=1)}
    images = torch.from_numpy(columns["image"])
    read = [teacher.features(images, plan.paths[teacher.name]) for teacher in teachers]
    for tap in plan.shapes:
        stacked = torch.cat([features[tap] for features, _ in read], dim=1)
        columns[tap] = stacked.half().numpy()
    columns["scores"] = torch.cat([scores for _, scores in read], dim=1).half().numpy()
    start_folder(tmp_path / FEATURES)
    write_shard(tmp_path / FEATURES, columns)
    finish_folder(tmp_path / FEATURES, {})
    return StageInputs(config, plan, tmp_path, torch.device("cpu"), lambda progress: None)


def summary(folder: Path, stage: str) -> dict:
    return json.loads(stage_file(folder, stage).read_text())


def test_every_stage_learns_and_leaves_its_weights(inputs):
    run_stages(inputs)
    for stage in STAGES:
        history = summary(inputs.folder, stage)["history"]
        losses = [sum(record["losses"].values()) for record in history]
        assert len(losses) == getattr(inputs.config, stage).epochs
        assert losses[-1] < losses[0]
    student = Student(inputs.plan.spec)
    student.load_state_dict(load_file(stage_file(inputs.folder, "joint").with_suffix(".safetensors")))
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


def told_stages(inputs: StageInputs) -> list[str]:
    """Run the stages; which of them trained."""
    told: list[Progress] = []
    run_stages(StageInputs(inputs.config, inputs.plan, inputs.folder, inputs.device, told.append))
    return list(dict.fromkeys(progress.stage for progress in told))


def test_what_stands_is_not_repeated(inputs):
    assert told_stages(inputs) == ["codes", "layers", "joint"]
    assert told_stages(inputs) == []
    stage_file(inputs.folder, "joint").unlink()
    assert told_stages(inputs) == ["joint"]


def test_a_repeated_stage_gives_the_same_weights(inputs):
    run_stages(inputs)
    weights = stage_file(inputs.folder, "layers").with_suffix(".safetensors")
    before = weights.read_bytes()
    stage_file(inputs.folder, "layers").unlink()
    weights.unlink()
    run_stages(inputs)
    assert weights.read_bytes() == before
