"""Test which names taps may have: not those of what a module or the stored features have themselves."""

import pytest
from torch import nn

from ka_ray.errors import InputError
from ka_ray.student.cut import cut_into_stages
from ka_ray.student.plan import make_plan
from ka_ray.student.value_chain import is_child_name
from ka_ray.teachers import build_teacher
from ka_ray.teachers.plain import plain_conv_net

TAKEN = ("training", "forward", "keys", "parameters", "_modules", "T_destination", "__class__")
COLUMNS = ("image", "image_id", "label", "owner", "owners", "p_nobody", "embedding", "targets", "draws")


@pytest.mark.parametrize("name", [*TAKEN, *COLUMNS])
@pytest.mark.parametrize("start", ["random", "auto"])
def test_a_tap_with_a_name_that_is_taken_is_one_message(load_config, name, start):
    config = load_config(
        f"taps={{{name}: {{low: conv1, high: conv1, student: conv1}}}}", f"student.start={start}"
    )
    with pytest.raises(InputError, match=rf"taps\.{name}: a tap cannot have this name; choose another one"):
        make_plan(config, [build_teacher(teacher) for teacher in config.teachers])


@pytest.mark.parametrize("name", TAKEN)
def test_a_network_is_not_cut_at_such_a_tap(name):
    with pytest.raises(InputError, match=rf"taps\.{name}: a tap cannot have this name"):
        cut_into_stages(plain_conv_net(5), {name: "norm1"})


def test_a_name_is_possible_exactly_if_torch_takes_it():
    for name in [*dir(nn.ModuleDict()), "conv1", "a-b", "_x", "Training", "0", "", "a.b"]:
        try:
            nn.ModuleDict().add_module(name, nn.Identity())
            is_taken = hasattr(nn.ModuleDict(), name)  # torch forgets to refuse some, and would lose them
        except (KeyError, TypeError):
            is_taken = True
        assert is_child_name(name) is not is_taken, name
