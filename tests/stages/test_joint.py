"""Test joint learning: losses against their formulas, and scores of augmented images."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ka_ray.amalgamation.label_sets import softened_kl
from ka_ray.config import Augmentation, JointConfig, ScoresConfig
from ka_ray.images.augment import NUM_VIEW_DRAWS, augment, score_views
from ka_ray.stages.joint import JointLearner, needs_teacher_scores
from ka_ray.student import Student
from ka_ray.teachers import Teacher, load_teacher

AUGMENT = Augmentation(flip=True, shift=2)
ONE_VIEW = ScoresConfig()
OVERLAPPING_LABEL_SETS = {"low": tuple("abcde"), "high": tuple("gdfea")}
CLASSES = "abcdegf"


@pytest.fixture
def teachers(load_config) -> list[Teacher]:
    return [load_teacher(config) for config in load_config().teachers]


@pytest.fixture
def student(make_spec, teachers) -> Student:
    return Student(make_spec("plain", {"conv1": 5}, classes=10, widths=[4]))


@pytest.fixture
def make_student(make_spec) -> Callable[[str | None], Student]:
    """Return a function that makes a student with overlapping label sets and a given score rule."""
    spec = make_spec("plain", {"conv1": 5}, widths=[4])
    return lambda rule: Student(replace(spec, label_sets=OVERLAPPING_LABEL_SETS, rule=rule))


def make_batch(count: int = 6) -> dict[str, Tensor]:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return {"image": images, "scores": torch.randn(count, 10), "draws": torch.rand(count, NUM_VIEW_DRAWS)}


def kl_in_numpy(scores: Tensor, target: Tensor, temperature: float) -> float:
    def softmax(values: Tensor) -> np.ndarray:
        exponents = np.exp(values.detach().double().numpy() / temperature)
        return exponents / exponents.sum(1, keepdims=True)

    p, q = softmax(target), softmax(scores)
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean())


def test_mse_is_half_the_mean_squared_difference(student):
    batch = make_batch()
    losses = JointLearner(student, JointConfig(), ONE_VIEW)(batch)
    expected = ((student(batch["image"]) - batch["scores"]) ** 2).mean() / 2
    torch.testing.assert_close(losses, {"loss": expected})


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kl_equals_its_formula(student, temperature):
    batch = make_batch()
    config = JointConfig(loss="kl", temperature=temperature)
    computed = JointLearner(student, config, ONE_VIEW)(batch)["loss"]
    expected = kl_in_numpy(student(batch["image"]), batch["scores"], temperature)
    assert computed.item() == pytest.approx(expected, rel=1e-4)


def test_kl_ignores_a_constant_added_to_all_scores():
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
def test_teachers_score_the_augmented_image_of_the_student(student, teachers, loss):
    batch = make_batch()
    config = JointConfig(loss=loss, augment=AUGMENT)
    computed = JointLearner(student, config, ONE_VIEW, teachers)(batch)["loss"]
    views = augment(batch["image"], AUGMENT, batch["draws"])
    assert not torch.equal(views, batch["image"])
    target = torch.cat([teacher.scores(views) for teacher in teachers], dim=1)
    with_stored_scores = JointLearner(student, JointConfig(loss=loss), ONE_VIEW)
    torch.testing.assert_close(computed, with_stored_scores({"image": views, "scores": target})["loss"])


def test_a_teacher_with_larger_images_scores_them_flipped_and_shifted_like_the_students(student, teachers):
    batch, augmentation = make_batch(), Augmentation(flip=True, shift=2)
    large = batch["image"].repeat_interleave(2, -1).repeat_interleave(2, -2)
    config = JointConfig(augment=augmentation)
    columns = {teachers[1].name: "image@1"}
    learner = JointLearner(student, config, ONE_VIEW, teachers, columns)
    computed = learner(batch | {"image@1": large})["loss"]
    views = augment(batch["image"], augmentation, batch["draws"])
    # Two pixels of the large image are one of the small image, so its view is the small view, enlarged.
    large_views = views.repeat_interleave(2, -1).repeat_interleave(2, -2)
    target = torch.cat([teachers[0].scores(views), teachers[1].scores(large_views)], dim=1)
    expected = ((student(views) - target) ** 2).mean() / 2
    torch.testing.assert_close(computed, expected)


@pytest.mark.parametrize(("views", "count"), [(("flip",), 2), (("shift",), 5), (("flip", "shift"), 10)])
def test_targets_of_an_augmented_image_are_averaged_over_its_views(student, teachers, views, count):
    batch, config = make_batch(), ScoresConfig(views=views, shift=1)
    computed = JointLearner(student, JointConfig(augment=AUGMENT), config, teachers)(batch)["loss"]
    augmented = augment(batch["image"], AUGMENT, batch["draws"])
    padded = torch.nn.functional.pad(augmented.float(), (1, 1, 1, 1), mode="replicate")
    moves = [(1, 1), (2, 1), (0, 1), (1, 2), (1, 0)] if "shift" in views else [(1, 1)]
    views_of_image = [padded[:, :, row : row + 8, column : column + 8] for row, column in moves]
    if "flip" in views:
        mirrored = padded.flip(-1)
        views_of_image += [mirrored[:, :, row : row + 8, column : column + 8] for row, column in moves]
    assert len(views_of_image) == count
    own = [sum(teacher.scores(view) for view in views_of_image) / count for teacher in teachers]
    expected = ((student(augmented) - torch.cat(own, dim=1)) ** 2).mean() / 2
    torch.testing.assert_close(computed, expected)


def amalgamate_in_loop(own: Tensor, rule: str) -> np.ndarray:
    """Merge the teachers' scores of each class of each image in a loop."""
    merge = {"mean": np.mean, "max": np.max}[rule]
    per_image = own.reshape(len(own), 2, 5).numpy()
    rows = [
        [
            merge(
                [
                    scores[t, names.index(c)]
                    for t, names in enumerate(OVERLAPPING_LABEL_SETS.values())
                    if c in names
                ]
            )
            for c in CLASSES
        ]
        for scores in per_image
    ]
    return np.array(rows)


@pytest.mark.parametrize(("configured", "rule"), [(None, "mean"), ("mean", "mean"), ("max", "max")])
@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_targets_of_overlapping_label_sets_follow_the_score_rule(make_student, configured, rule, loss):
    student, batch = make_student(configured), make_batch()
    target = amalgamate_in_loop(batch["scores"], rule)
    computed = JointLearner(student, JointConfig(loss=loss, temperature=3.0), ONE_VIEW)(batch)["loss"]
    scores = student(batch["image"]).detach()
    expected = kl_in_numpy(scores, torch.tensor(target), 3.0)
    if loss == "mse":
        expected = ((scores.numpy() - target) ** 2).mean() / 2
    assert computed.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("loss", "temperature"), [("kl", 1.0), ("kl", 3.0), ("mse", 1.0)])
def test_the_rule_conditional_compares_the_student_with_each_teacher_among_its_classes(
    make_student, loss, temperature
):
    """Test the loss of this rule. It ignores the temperature if the config's loss is not `kl`."""
    student, batch = make_student("conditional"), make_batch()
    config = JointConfig(loss=loss, temperature=temperature if loss == "kl" else 7.0)
    computed = JointLearner(student, config, ONE_VIEW)(batch)["loss"]
    scores, expected = student(batch["image"]), 0.0
    for own, names in zip(batch["scores"].split(5, dim=1), OVERLAPPING_LABEL_SETS.values(), strict=True):
        columns = [CLASSES.index(name) for name in names]
        expected += kl_in_numpy(scores[:, columns], own, temperature)
    assert computed.item() == pytest.approx(expected, rel=1e-4)


def test_targets_of_augmented_images_follow_the_score_rule(make_student, teachers):
    student, batch = make_student("conditional"), make_batch()
    computed = JointLearner(student, JointConfig(augment=AUGMENT), ONE_VIEW, teachers)(batch)["loss"]
    views = augment(batch["image"], AUGMENT, batch["draws"])
    stored = {"image": views, "scores": torch.cat([teacher.scores(views) for teacher in teachers], dim=1)}
    torch.testing.assert_close(computed, JointLearner(student, JointConfig(), ONE_VIEW)(stored)["loss"])


def test_augmentation_without_teachers_is_refused(student):
    with pytest.raises(ValueError, match="needs the teachers"):
        JointLearner(student, JointConfig(augment=AUGMENT), ONE_VIEW)


def test_stored_scores_averaged_over_flips_are_used_for_mirrored_images(student, teachers):
    batch, config = make_batch(), JointConfig(augment=Augmentation(flip=True))
    both = ScoresConfig(views=("flip", "shift"))
    stored = torch.cat([score_views(teacher.scores, batch["image"], both) for teacher in teachers], dim=1)
    computed = JointLearner(student, config, both)(batch | {"scores": stored})["loss"]
    images = augment(batch["image"], config.augment, batch["draws"])
    assert not torch.equal(images, batch["image"])
    scored_again = torch.cat([score_views(teacher.scores, images, both) for teacher in teachers], dim=1)
    expected = ((student(images) - scored_again) ** 2).mean() / 2
    torch.testing.assert_close(computed, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("augment", "views", "needed"),
    [
        ({"flip": True}, (), True),
        ({"flip": True}, ("shift",), True),
        ({"flip": True}, ("flip",), False),
        ({"flip": True, "shift": 1}, ("flip",), True),
        ({}, (), False),
    ],
)
def test_teachers_are_needed_only_if_augmentation_changes_the_scores(augment, views, needed):
    config = JointConfig(augment=Augmentation(**augment))
    assert needs_teacher_scores(config, ScoresConfig(views=views)) is needed


def test_only_the_student_gets_gradients(student, teachers):
    learner = JointLearner(student, JointConfig(augment=AUGMENT), ONE_VIEW, teachers)
    learner(make_batch())["loss"].backward()
    assert {id(p) for p in learner.parameters()} == {id(p) for p in student.parameters()}
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for teacher in teachers for p in teacher.network.parameters())


def test_training_mode_leaves_the_teachers_in_eval_mode(student, teachers):
    learner = JointLearner(student, JointConfig(augment=AUGMENT), ONE_VIEW, teachers)
    learner.train()
    assert student.training
    assert not any(module.training for teacher in teachers for module in teacher.network.modules())
