"""Joint learning: the losses by their formulas, and teachers that score the very view."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ka_ray.amalgamation.scores import LabelSets
from ka_ray.config import Augmentation, JointConfig
from ka_ray.images.augment import NUM_DRAWS, augment
from ka_ray.student import Student
from ka_ray.student.joint import JointLearner, softened_kl
from ka_ray.teachers import Teacher, load_teacher

AUGMENT = Augmentation(flip=True, shift=2)


@pytest.fixture
def teachers(load_config) -> list[Teacher]:
    return [load_teacher(config) for config in load_config().teachers]


@pytest.fixture
def student(make_spec, teachers) -> Student:
    return Student(make_spec("plain", {"conv1": 5}, classes=10, widths=[4]))


def label_sets(teachers: list[Teacher]) -> LabelSets:
    return LabelSets({teacher.name: teacher.classes for teacher in teachers})


def make_batch(count: int = 6) -> dict[str, Tensor]:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return {"image": images, "scores": torch.randn(count, 10), "draws": torch.rand(count, NUM_DRAWS)}


def kl_by_numpy(scores: Tensor, target: Tensor, temperature: float) -> float:
    def softmax(values: Tensor) -> np.ndarray:
        exponents = np.exp(values.detach().double().numpy() / temperature)
        return exponents / exponents.sum(1, keepdims=True)

    p, q = softmax(target), softmax(scores)
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean())


def test_mse_is_half_the_mean_squared_difference(student, teachers):
    batch = make_batch()
    losses = JointLearner(student, JointConfig(), label_sets(teachers))(batch)
    expected = ((student(batch["image"]) - batch["scores"]) ** 2).mean() / 2
    torch.testing.assert_close(losses, {"loss": expected})


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kl_is_its_formula(student, teachers, temperature):
    batch = make_batch()
    config = JointConfig(loss="kl", temperature=temperature)
    loss = JointLearner(student, config, label_sets(teachers))(batch)["loss"]
    expected = kl_by_numpy(student(batch["image"]), batch["scores"], temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_kl_vanishes_where_scores_differ_by_a_constant():
    scores = torch.randn(4, 5)
    assert softened_kl(scores, scores + 3, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert softened_kl(scores, scores.flip(0), 2.0).item() > 1e-3


def test_kl_stays_finite_for_huge_scores():
    scores = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(softened_kl(-scores, scores, 1.0))


def test_the_gradient_of_kl_keeps_its_size_at_high_temperature():
    target = torch.randn(64, 5)
    sizes = []
    for temperature in (20.0, 80.0):
        scores = torch.zeros(64, 5, requires_grad=True)
        softened_kl(scores, target, temperature).backward()
        sizes.append(scores.grad.norm().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_teachers_score_the_view_that_the_student_sees(student, teachers, loss):
    batch = make_batch()
    config = JointConfig(loss=loss, augment=AUGMENT)
    got = JointLearner(student, config, label_sets(teachers), teachers)(batch)["loss"]
    views = augment(batch["image"], AUGMENT, batch["draws"])
    assert not torch.equal(views, batch["image"])
    target = torch.cat([teacher.scores(views) for teacher in teachers], dim=1)
    stored = JointLearner(student, JointConfig(loss=loss), label_sets(teachers))
    torch.testing.assert_close(got, stored({"image": views, "scores": target})["loss"])


def test_augmentation_without_teachers_is_refused(student, teachers):
    with pytest.raises(ValueError, match="needs the teachers"):
        JointLearner(student, JointConfig(augment=AUGMENT), label_sets(teachers))


def test_the_student_alone_is_learned(student, teachers):
    learner = JointLearner(student, JointConfig(augment=AUGMENT), label_sets(teachers), teachers)
    learner(make_batch())["loss"].backward()
    assert {id(p) for p in learner.parameters()} == {id(p) for p in student.parameters()}
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for teacher in teachers for p in teacher.network.parameters())


def test_training_mode_does_not_reach_the_teachers(student, teachers):
    learner = JointLearner(student, JointConfig(augment=AUGMENT), label_sets(teachers), teachers)
    learner.train()
    assert student.training
    assert not any(module.training for teacher in teachers for module in teacher.network.modules())
