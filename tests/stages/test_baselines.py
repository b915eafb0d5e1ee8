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

NUM_IMAGES, BATCH_SIZE, LEARNING_RATE = 100, 16, 1e-2
STEPS_PER_EPOCH = NUM_IMAGES // BATCH_SIZE


@pytest.fixture
def make_inputs(load_config, make_store, tmp_path):
    """Return a function that makes the inputs of a baseline, with stored images, labels and random scores."""

    def make(*overrides: str, without_column: str | None = None) -> StageInputs:
        config = load_config(
            f"joint={{epochs: 2, batch_size: {BATCH_SIZE}, learning_rate: {LEARNING_RATE}}}", *overrides
        )
        digits = load_digits()
        grey = np.round(digits.images[:NUM_IMAGES] * 255 / 16).astype(np.uint8)
        columns = {
            "image_id": np.arange(NUM_IMAGES),
            "image": np.repeat(grey[:, None], 3, axis=1),
            "label": np.array([f"digit_{i}" for i in digits.target[:NUM_IMAGES]], dtype=object),
            "scores": np.random.default_rng(0).normal(size=(NUM_IMAGES, 10)).astype(np.float16),
        }
        make_store(
            {name: column for name, column in columns.items() if name != without_column}, folder=IMAGES
        )
        plan = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
        return StageInputs(config, plan, tmp_path, tmp_path, torch.device("cpu"), lambda progress: None)

    return make


def run_and_load_weights(inputs: StageInputs) -> dict[str, Tensor]:
    run_stages(inputs)
    return load_file(stage_summary_path(inputs.folder, "joint").with_suffix(".safetensors"))


def make_untrained_student(inputs: StageInputs) -> Student:
    torch.manual_seed(inputs.config.seed)
    return Student(inputs.plan.spec)


def train_by_plain_loop(
    inputs: StageInputs, batches: Batches, steps: int, loss: Callable[[Student, dict[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """Train a student in a plain loop, and return its weights.

    It starts from random weights, and uses AdamW without weight decay.

    Args:
        inputs: Inputs of the run.
        batches: Batches of two epochs.
        steps: Number of steps.
        loss: Function of the student and a batch that returns the loss.
    """
    student = make_untrained_student(inputs)
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, weight_decay=0)
    all_batches = (batch for epoch in (1, 2) for batch in batches.epoch(epoch))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * learning_rate_factor(step, steps)
        optimizer.zero_grad()
        loss(student, next(all_batches)).backward()
        optimizer.step()
    return student.state_dict()


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


# 140 images are 8 batches of 16, and a part of a batch, which is dropped.
@pytest.mark.parametrize(("budget", "steps"), [("null", 2 * STEPS_PER_EPOCH), ("140", 8)])
def test_distillation_equals_a_plain_loop_towards_the_scores(make_inputs, budget, steps):
    inputs = make_inputs("baseline=distill", f"joint.images={budget}")
    batches = Batches(inputs.store(IMAGES), ["image", "scores"], BATCH_SIZE, inputs.config.seed)
    expected = train_by_plain_loop(
        inputs, batches, steps, lambda student, b: ((student(b["image"]) - b["scores"]) ** 2).mean() / 2
    )
    assert_same_weights(run_and_load_weights(inputs), expected)


@pytest.mark.parametrize("views", ["{}", "{flip: true, shift: 1}"])
def test_scratch_equals_a_plain_loop_towards_the_labels(make_inputs, views):
    inputs = make_inputs("baseline=scratch", f"joint.augment={views}", without_column="scores")
    targets = load_digits().target[:NUM_IMAGES].astype(np.int64)  # digit_i has index i among the classes
    batches = Batches(
        inputs.store(IMAGES), ["image"], BATCH_SIZE, inputs.config.seed, num_draws=3, targets=targets
    )

    def cross_entropy(student: Student, batch: dict[str, Tensor]) -> Tensor:
        scores = student(augment(batch["image"], inputs.config.joint.augment, batch["draws"]))
        return (scores.exp().sum(1).log() - scores[torch.arange(BATCH_SIZE), batch["target"]]).mean()

    assert_same_weights(
        run_and_load_weights(inputs), train_by_plain_loop(inputs, batches, 2 * STEPS_PER_EPOCH, cross_entropy)
    )


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_starts_from_the_random_weights_of_its_seed(make_inputs, baseline):
    inputs = make_inputs(f"baseline={baseline}", "joint.learning_rate=1e-30", "seed=3")
    expected = make_untrained_student(inputs).state_dict()
    found = run_and_load_weights(inputs)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("baseline", ["distill", "scratch"])
def test_a_baseline_has_one_stage_and_reads_no_codes_or_layers(make_inputs, baseline):
    inputs = make_inputs(f"baseline={baseline}")
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


def test_scratch_maps_labels_to_classes_by_name(make_inputs, config_tree):
    # The second teacher's classes are not in the order of the digits.
    config_tree["teachers"][1]["classes"] = [f"digit_{i}" for i in (9, 5, 6, 7, 8)]
    inputs = make_inputs("baseline=scratch", "joint.epochs=60")
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


def test_a_class_without_images_is_refused_and_the_message_names_it(make_inputs):
    inputs = make_inputs("baseline=scratch", "teachers.0.classes.2=cat")
    with pytest.raises(InputError, match="baseline scratch: no image is labelled cat"):
        run_stages(inputs)
    assert not stage_summary_path(inputs.folder, "joint").exists()


def test_a_budget_of_images_counts_only_images_with_labels_of_the_teachers(make_inputs, make_store, tmp_path):
    inputs = make_inputs("baseline=scratch", "joint.images=90")
    store = inputs.store(IMAGES)
    columns = store.gather(["image", "label"], np.arange(NUM_IMAGES))
    columns["label"] = np.where(np.arange(NUM_IMAGES) < 50, columns["label"], "something else")
    make_store({"image_id": store.image_ids, **columns}, folder=f"other/{IMAGES}")
    run_stages(replace(inputs, data=Path(tmp_path / "other")))
    history = json.loads(stage_summary_path(inputs.folder, "joint").read_text())["history"]
    # The 50 images with known labels make 3 batches of 16. The budget of 90 images allows 2 more batches.
    assert [record["images"] for record in history] == [48, 80]
