"""Test that a command holds one teacher in memory at a time while it plans a run."""

import weakref
from collections.abc import Callable

import pytest
import torch

from ka_ray.runs import setup
from ka_ray.runs.setup import plan_run
from ka_ray.stages import describe_start
from ka_ray.student.plan import make_plan
from ka_ray.teachers import Teacher, build_teacher, load_teacher
from ka_ray.teachers.on_demand import TeachersOnDemand
from ka_ray.teachers.skeleton import without_values


class LoadCount:
    """Loads teachers, and counts how often, and how many networks were in memory at once."""

    def __init__(self, load: Callable[..., Teacher]) -> None:
        self._load, self._alive = load, weakref.WeakSet[object]()
        self.loaded = self.most = 0

    def __call__(self, config) -> Teacher:
        teacher = self._load(config)
        self._alive.add(teacher.network)
        self.loaded, self.most = self.loaded + 1, max(self.most, len(self._alive))
        return teacher


@pytest.fixture
def four_teachers(config_tree, load_config):
    first = config_tree["teachers"][0]
    config_tree["teachers"] = [
        {**first, "name": f"t{i}", "classes": first["classes"] if i == 0 else [f"{i} {j}" for j in range(5)]}
        for i in range(4)
    ]
    return load_config


@pytest.mark.parametrize("start", ["random", "auto", "average", "exact", "{teacher: t1}"])
def test_a_run_is_planned_with_one_teacher_in_memory(four_teachers, monkeypatch, start):
    count = LoadCount(build_teacher)
    monkeypatch.setattr(setup, "build_teacher", count)
    planned = plan_run(four_teachers(f"student.start={start}"), students=[()])
    assert [*planned.plan.label_sets.by_teacher] == ["t0", "t1", "t2", "t3"]
    assert count.loaded >= 4
    assert count.most == 1
    assert start == "random" or any(note.startswith("student: start ") for note in planned.notes)


@pytest.mark.parametrize("start", ["auto", "average"])
def test_the_start_is_described_without_weights_as_with_them(four_teachers, monkeypatch, start):
    config = four_teachers(f"student.start={start}")
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    spec = make_plan(config, teachers).spec
    found = describe_start.describe_start(config, spec, TeachersOnDemand(config.teachers))
    monkeypatch.setattr(describe_start, "without_values", lambda teacher: teacher)
    assert found == describe_start.describe_start(config, spec, teachers)
    assert "of their norm apart" in str(found)


def test_a_teacher_without_values_has_its_shapes_and_takes_no_memory(four_teachers):
    teacher = load_teacher(four_teachers().teachers[0])
    before = {name: tensor.clone() for name, tensor in teacher.network.state_dict().items()}
    skeleton = without_values(teacher).network.state_dict()
    assert {name: t.shape for name, t in skeleton.items()} == {name: t.shape for name, t in before.items()}
    assert all(tensor.untyped_storage().nbytes() <= 8 for tensor in skeleton.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.network.state_dict().items())


def test_a_plan_of_teachers_on_demand_equals_that_of_loaded_ones(four_teachers):
    count, config = LoadCount(load_teacher), four_teachers()
    found = make_plan(config, TeachersOnDemand(config.teachers, count))
    assert (count.loaded, count.most) == (4, 1)
    expected = make_plan(config, [load_teacher(teacher) for teacher in config.teachers])
    assert found.spec == expected.spec
    assert found.paths == expected.paths
    assert (found.channels, found.spaces) == (expected.channels, expected.spaces)


def test_teachers_on_demand_are_a_sequence(four_teachers):
    teachers = TeachersOnDemand(four_teachers().teachers)
    assert len(teachers) == 4
    assert [teacher.name for teacher in teachers] == ["t0", "t1", "t2", "t3"]
    assert [teacher.name for teacher in teachers[2:]] == ["t2", "t3"]
    assert teachers[-1].name == "t3"
