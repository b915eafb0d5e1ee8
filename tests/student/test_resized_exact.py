"""Test that the closed form solves students of other widths than their teachers have."""

import pytest
import timm
import torch
from test_block_solver import (
    BUILDERS,
    build_mobilenet,
    build_resnet,
    make_batches,
    make_images,
    make_preprocess,
    make_strangers,
    make_teachers,
    relative_error,
    solve,
)
from torch import nn

from ka_ray.errors import InputError
from ka_ray.student.block_solver import check_solvable
from ka_ray.student.resized import find_width_groups, resize_network
from ka_ray.student.stacked_networks import StackedNetworks

IMAGES = make_images(300)


def example():
    return make_preprocess()(make_images(2))


def resized(network: nn.Module, factor: float) -> nn.Module:
    groups = find_width_groups(network, example())
    widths = {group.name: max(group.min_width, round(factor * group.width)) for group in groups}
    return resize_network(network, groups, widths, example())


# A layer norm over the channels of both teachers is not one over those of each.
@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if "convnext" not in kind and kind != "vit"])
def test_a_student_as_wide_as_all_teachers_together_reproduces_their_scores(kind, randomised):
    teachers = make_strangers(BUILDERS[kind], randomised)
    student, errors = solve(teachers, resized(BUILDERS[kind](5), 2), make_batches(IMAGES))
    assert relative_error(student, teachers, make_images(40, seed=1)) < 1e-4
    assert max(error.relative_error for error in errors) < 1e-4


@pytest.mark.parametrize("build", [build_resnet, build_mobilenet])
def test_wider_students_are_closer_to_the_teachers(build, randomised):
    teachers, judged = make_strangers(build, randomised), make_images(40, seed=1)
    errors = [
        relative_error(solve(teachers, resized(build(5), factor), make_batches(IMAGES))[0], teachers, judged)
        for factor in (0.5, 1, 1.5)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5


def test_teachers_of_different_widths_have_one_student(randomised):
    narrow = resized(build_resnet(2), 0.5)
    teachers = make_teachers([randomised(build_resnet(3)), randomised(narrow)])
    student, _ = solve(teachers, resized(build_resnet(5), 1.5), make_batches(IMAGES))
    assert relative_error(student, teachers, make_images(40, seed=1)) < 1e-4


def test_only_widths_may_differ(randomised):
    teachers = make_strangers(build_resnet, randomised)
    student = resized(build_resnet(5), 0.5)
    layers = [module for module in student.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert check_solvable(student, teachers, example()) == len(layers)
    strided = resized(build_resnet(5), 0.5)
    strided[0][0].stride = (2, 2)
    with pytest.raises(InputError, match=r"another architecture than the student: its module '0\.0'"):
        check_solvable(strided, teachers, example())


def test_two_channels_per_group_can_be_solved(randomised):
    torch.manual_seed(0)
    teachers = make_strangers(build_mobilenet, randomised)
    student, _ = solve(teachers, resized(build_mobilenet(5), 0.01), make_batches(IMAGES))
    assert torch.isfinite(student(example())).all()


def test_teachers_with_other_numbers_of_heads_are_refused():
    def build(heads):
        sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8 * heads, "depth": 1, "num_heads": heads}
        return timm.models.VisionTransformer(num_classes=3, **sizes).eval()

    with pytest.raises(InputError, match=r"teacher b has another architecture .* cannot be computed"):
        StackedNetworks(build(4), {"a": build(4), "b": build(3)}, torch.randn(2, 3, 16, 16))
