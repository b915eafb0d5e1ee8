"""Test the epochs and the rate of joint learning that a run chooses for its network and its images."""

from dataclasses import replace

import pytest

from ka_ray.config import with_overrides
from ka_ray.runs.joint_defaults import choose_joint_defaults, describe_joint_defaults
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_teacher


@pytest.fixture
def plan(load_config):
    config = load_config("student.start=average")
    return make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


@pytest.mark.parametrize(
    ("images", "epochs"),
    [
        (5000, 3),  # 4,500 to learn from, 140 steps of 32 images: 420 in three epochs
        (2000, 6),  # 1,800: 56 steps, so 5.4 epochs
        (1000, 11),  # 900: 28 steps, so 10.7 epochs
        (50, 30),  # 45: one step; no more than 30 epochs
        (10, 30),  # not even one whole batch
    ],
)
def test_few_images_get_more_epochs_behind_a_start(load_config, plan, images, epochs):
    chosen = choose_joint_defaults(load_config("student.start=average"), plan, images)
    assert (chosen.joint.epochs, chosen.joint.learning_rate) == (epochs, 0.001)


@pytest.mark.parametrize(
    "overrides",
    [
        ("student.start=random",),
        ("student.start=average", "joint.epochs=0"),
        ("student.start=average", "joint.epochs=4", "joint.learning_rate=0.002"),
        ("student.start=average", "joint.images=64", "joint.learning_rate=0.002"),
    ],
)
def test_what_the_config_says_stays(load_config, plan, overrides):
    config = load_config(*overrides)
    chosen = choose_joint_defaults(config, replace(plan, has_layer_norms=True), 100)
    assert chosen.joint.model_dump() == config.joint.model_dump()
    assert describe_joint_defaults(config, chosen) is None


def test_networks_with_layer_norms_get_a_lower_rate(load_config, plan):
    config = load_config("student.start=average", "joint.learning_rate=null")
    chosen = choose_joint_defaults(config, replace(plan, has_layer_norms=True), 1000)
    assert (chosen.joint.epochs, chosen.joint.learning_rate) == (11, 0.0001)
    assert describe_joint_defaults(config, chosen) == (
        "joint: epochs: 11, because there are few images; learning_rate: 0.0001, because the student's "
        "network has layer norms"
    )


def test_a_changed_config_chooses_again(load_config, plan):
    chosen = choose_joint_defaults(load_config("student.start=average"), plan, 1000)
    changed = with_overrides(chosen, ["joint.batch_size=8"])
    assert changed.joint.epochs == 3
    assert choose_joint_defaults(changed, plan, 1000).joint.epochs == 3  # 112 steps each
