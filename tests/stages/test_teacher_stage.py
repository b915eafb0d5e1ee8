"""Test training of a teacher: its loss, and a checkpoint that a run can load."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from ka_ray.config import Augmentation, Preprocessing
from ka_ray.errors import InputError
from ka_ray.images.augment import augment
from ka_ray.stages.teacher import ClassifierLearner, class_targets, teacher_checkpoint_path, train_teacher
from ka_ray.teachers import Preprocess, load_teacher
from ka_ray.training import Progress


@pytest.fixture
def images(make_store, tmp_path):
    """Return the folder of a finished store with the first 300 digits and their labels."""
    digits = load_digits()
    grey = np.round(digits.images[:300] * 255 / 16).astype(np.uint8)
    columns = {
        "image_id": np.arange(300),
        "image": np.repeat(grey[:, None], 3, axis=1),
        "label": np.array([f"digit_{target}" for target in digits.target[:300]], dtype=object),
    }
    make_store(columns, folder="images")
    return tmp_path / "images"


def train_teacher_low(load_config, images, folder, *overrides: str):
    config = load_config("teachers.0.checkpoint=null", "teachers.0.training.batch_size=30", *overrides)
    reports: list[Progress] = []
    train_teacher(config.teachers[0], images, folder, 0, torch.device("cpu"), reports.append)
    return config.teachers[0], reports


def test_the_loss_is_cross_entropy_on_augmented_images():
    network, augmentation = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), Augmentation(flip=True, shift=1)
    network_on_pixels = nn.Sequential(Preprocess(Preprocessing()), network)
    batch = {
        "image": torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8),
        "target": torch.tensor([0, 1, 2, 2, 1, 0]),
        "draws": torch.rand(6, 3),
    }
    loss = ClassifierLearner(network_on_pixels, augmentation)(batch)["loss"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = augment(batch["image"], augmentation, batch["draws"]).movedim(1, -1) / 255
    scores = network(((pixels - mean) / std).movedim(-1, 1))
    chosen = scores.exp()[torch.arange(6), batch["target"]] / scores.exp().sum(1)
    torch.testing.assert_close(loss, -chosen.log().mean())


def test_a_trained_teacher_loads_and_predicts_its_classes(load_config, images, tmp_path):
    config, reports = train_teacher_low(load_config, images, tmp_path, "teachers.0.training.epochs=40")
    checkpoint = teacher_checkpoint_path(tmp_path, "low")
    teacher = load_teacher(config.model_copy(update={"checkpoint": checkpoint}))
    digits = load_digits()
    rows = np.flatnonzero(digits.target[:300] < 5)
    pixels = np.round(digits.images[rows] * 255 / 16).astype(np.uint8)
    scores = teacher.scores(torch.from_numpy(np.repeat(pixels[:, None], 3, axis=1)))
    assert (scores.argmax(1).numpy() == digits.target[rows]).mean() > 0.8
    assert [report.epoch for report in reports if report.epoch_ended] == list(range(1, 41))


def test_an_existing_checkpoint_is_not_trained_again(load_config, images, tmp_path):
    train_teacher_low(load_config, images, tmp_path, "teachers.0.training.epochs=1")
    before = teacher_checkpoint_path(tmp_path, "low").read_bytes()
    _, reports = train_teacher_low(load_config, images, tmp_path, "teachers.0.training.epochs=2")
    assert reports == []
    assert teacher_checkpoint_path(tmp_path, "low").read_bytes() == before


def test_the_same_seed_trains_the_same_teacher(load_config, images, tmp_path):
    for folder in ("first", "second"):
        train_teacher_low(load_config, images, tmp_path / folder, "teachers.0.training.epochs=1")
    first, second = (teacher_checkpoint_path(tmp_path / f, "low").read_bytes() for f in ("first", "second"))
    assert first == second


def test_a_seed_of_its_own_replaces_that_of_the_run(load_config, images, tmp_path):
    weights = []
    for number, seeds in enumerate(((), ("teachers.0.training.seed=0",), ("teachers.0.training.seed=1",))):
        folder = tmp_path / str(number)
        train_teacher_low(load_config, images, folder, "teachers.0.training.epochs=1", *seeds)
        weights.append(teacher_checkpoint_path(folder, "low").read_bytes())
    of_the_run, same, other = weights  # the run's seed is 0
    assert of_the_run == same
    assert of_the_run != other


def test_a_class_without_images_is_refused_and_the_message_names_it(load_config, images, tmp_path):
    with pytest.raises(InputError, match="teacher low: no image is labelled cat"):
        train_teacher_low(
            load_config, images, tmp_path, "teachers.0.training.epochs=1", "teachers.0.classes.4=cat"
        )


def make_labelled_store(make_store, *labels: str):
    column = np.array(labels, dtype=object)
    return make_store({"image_id": np.arange(len(labels)), "label": column}, shards=1, folder="labelled")


def test_targets_are_class_indices_or_minus_one_for_other_labels(make_store):
    store = make_labelled_store(make_store, "cow", "cat", "bird", "dog", "cat", "", "cow")
    targets = class_targets(store, ("dog", "cow", "cat"), "teacher low")
    assert targets.dtype == np.int64
    assert targets.tolist() == [1, 2, -1, 0, 2, -1, 1]


def test_the_message_names_all_classes_without_images(make_store):
    store = make_labelled_store(make_store, "cow", "cat")
    with pytest.raises(
        InputError, match=r"^teacher low: no image is labelled dog, bird; .*spelled the same$"
    ):
        class_targets(store, ("dog", "cow", "bird"), "teacher low")
