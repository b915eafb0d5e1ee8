"""Test the baselines: a student trained from random weights, from scores or from labels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES
from ka_ray.images.augment import augment
from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.inputs import StageInputs, stage_summary_path
from ka_ray.student import Student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.training import Batches
from ka_ray.training.fit import learning_rate_factor

NUM_IMAGES, BATCH, RATE = 100, 16, 1e-2
STEPS = NUM_IMAGES // BATCH


@pytest.fixture
def inputs_for(load_config, make_store, tmp_path):
    """Return a function that makes the inputs of a baseline, with stored images, labels and random scores."""

    def make(*overrides: str, without: str | None = None) -> StageInputs:
        config = load_config(f"joint={{epochs: 2, batch_size: {BATCH}, learning_rate: {RATE}}}", *overrides)
        digits = load_digits()
        grey = np.round(digits.images[:NUM_IMAGES] * 255 / 16).astype(np.uint8)
        columns = {
            "image_id": np.arange(NUM_IMAGES),
            "image": np.repeat(grey[:, None], 3, axis=1),
            "label": np.array([f"digit_{i}" for i in digits.target[:NUM_IMAGES]], dtype=object),
            "scores": np.random.default_rng(0).normal(size=(NUM_IMAGES, 10)).astype(np.float16),
        }
        make_store({name: column for name, column in columns.items() if name != without}, folder=IMAGES)
        plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
        return StageInputs(config, plan, tmp_path, tmp_path, torch.device("cpu"), lambda progress: None)

    return make


def trained(inputs: StageInputs) -> dict[str, Tensor]:
    run_stages(inputs)
    return load_file(stage_summary_path(inputs.folder, "joint").with_suffix(".safetensors"))


def fresh(inputs: StageInputs) -> Student:
    torch.manual_seed(inputs.config.seed)
    return Student(inputs.plan.spec)


def by_hand(
    inputs: StageInputs, batches: Batches, steps: int, loss: Callable[[Student, dict[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Train from random weights with a plain loop of AdamW without decay and with the loss of the test."""
    student = fresh(inputs)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=0)
    everything = (batch for epoch in (1, 2) for batch in batches.epoch(epoch))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * learning_rate_factor(step, steps)
        optimizer.zero_grad()
        loss(student, next(everything)).backward()
        optimizer.step()
    return student.state_dict()


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("budget", "steps"), [("null", 2 * STEPS), ("140", 8)])
def test_distillation_equals_a_plain_loop_towards_the_scores(inputs_for, budget, steps):
    inputs = inputs_for("baseline=distill", f"joint.images={budget}")
    batches = Batches(inputs.store(IMAGES), ["image", "scores"], BATCH, inputs.config.seed)
    expected = by_hand(
        inputs, batches, steps, lambda student, b: ((student(b["image"]) - b["scores"]) ** 2).mean() / 2
    )
    assert_same_weights(trained(inputs), expected)


@pytest.mark.parametrize("views", ["{}", "{flip: true, shift: 1}"])
def test_scratch_equals_a_plain_loop_towards_the_labels(inputs_for, views):
    inputs = inputs_for("baseline=scratch", f"joint.augment={views}", without="scores")
    targets = load_digits().target[:NUM_IMAGES].astype(np.int64)  # digit_i has index i among the classes
    batches = Batches(
        inputs.store(IMAGES), ["image"], BATCH, inputs.config.seed, num_draws=3, targets=targets
    )

    def cross_entropy(student: Student, batch: dict[str, Tensor]) -> Tensor:
        scores = student(augment(batch["image"], inputs.config.joint.augment, batch["draws"]))
        return (scores.exp().sum(1).log() - scores[torch.arange(BATCH), batch["target"]]).mean()

    assert_same_weights(trained(inputs), by_hand(inputs, batches, 2 * STEPS, cross_entropy))


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_starts_from_the_random_weights_of_its_seed(inputs_for, baseline):
    inputs = inputs_for(f"baseline={baseline}", "joint.learning_rate=1e-30", "seed=3")
    expected = fresh(inputs).state_dict()
    found = trained(inputs)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_has_one_stage_and_reads_no_codes_or_layers(inputs_for, baseline):
    inputs = inputs_for(f"baseline={baseline}")
    stages = inputs.folder / "stages"
    stages.mkdir()
    for stage in ("codes", "layers"):
        (stages / f"{stage}.safetensors").write_bytes(b"not to be read")
    run_stages(inputs)
    assert list_stages(inputs.config) == ("joint",)
    assert list_stages(inputs.config.model_copy(update={"baseline": None})) == ("codes", "layers", "joint")
    assert {path.name for path in stages.iterdir()} == {
        *("codes.safetensors", "layers.safetensors", "joint.safetensors", "joint.json")
    }
    assert (stages / "codes.safetensors").read_bytes() == b"not to be read"


def test_scratch_maps_labels_to_classes_by_name(inputs_for, config_tree):
    config_tree["teachers"][1]["classes"] = [f"digit_{i}" for i in (9, 5, 6, 7, 8)]  # another order
    inputs = inputs_for("baseline=scratch", "joint.epochs=60")
    store = inputs.store(IMAGES)
    run_stages(inputs)
    student = Student(inputs.plan.spec)
    student.load_state_dict(load_file(stage_summary_path(inputs.folder, "joint").with_suffix(".safetensors")))
    columns = store.gather(["image", "label"], np.arange(NUM_IMAGES))
    with torch.no_grad():
        predicted = student.eval()(torch.from_numpy(columns["image"])).argmax(1)
    names = np.array(student.spec.classes)[predicted.numpy()]
    assert (names == columns["label"]).mean() > 0.7
    assert len(student.spec.classes) == 10


def test_a_class_without_images_is_refused_by_name(inputs_for):
    inputs = inputs_for("baseline=scratch", "teachers.0.classes.2=cat")
    with pytest.raises(InputError, match="baseline scratch: no image is labelled cat"):
        run_stages(inputs)
    assert not stage_summary_path(inputs.folder, "joint").exists()


def test_a_budget_counts_only_images_with_known_labels(inputs_for, make_store, tmp_path):
    inputs = inputs_for("baseline=scratch", "joint.images=90")
    store = inputs.store(IMAGES)
    columns = store.gather(["image", "label"], np.arange(NUM_IMAGES))
    columns["label"] = np.where(np.arange(NUM_IMAGES) < 50, columns["label"], "something else")
    make_store({"image_id": store.image_ids, **columns}, folder=f"other/{IMAGES}")
    run_stages(replace(inputs, data=Path(tmp_path / "other")))
    history = json.loads(stage_summary_path(inputs.folder, "joint").read_text())["history"]
    assert [record["images"] for record in history] == [48, 80]  # 50 known images make 3 batches of 16
