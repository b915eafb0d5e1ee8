"""Test that networks which least squares cannot solve are refused before a run starts, as by the solver."""

import pytest
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.student.block_solver import BlockSolverSettings, check_solvable, solve_student
from ka_ray.teachers import Preprocess, Teacher, build_network

LABELS = {"a": ("x", "y"), "b": ("z",)}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("regnet_y_400mf", "have a fixed order"),  # grouped convs
        ("shufflenet_v2_x0_5", "has channels of .* groups"),
    ],
)
def test_the_check_says_what_the_solver_would_say(name, message):
    teachers = [
        Teacher(label, classes, build_network(name, {}, len(classes)).eval(), Preprocess(Preprocessing()))
        for label, classes in LABELS.items()
    ]
    network, images = build_network(name, {}, 3), torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(InputError, match=message) as found:
        check_solvable(network.eval(), teachers, Preprocess(Preprocessing())(images))
    settings = BlockSolverSettings(images=8, choice_images=8)
    batches = [dict.fromkeys([*LABELS, "student"], images)]
    with pytest.raises(InputError) as expected:
        solve_student(
            network, Preprocess(Preprocessing()), teachers, LabelSets(LABELS), batches, settings=settings
        )
    assert str(found.value) == str(expected.value)
