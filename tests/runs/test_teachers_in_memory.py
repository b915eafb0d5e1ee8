"""Test that a command holds one teacher in memory at a time while it plans a run."""

import weakref
from collections.abc import Callable

import pytest

from ka_ray.runs import setup
from ka_ray.runs.setup import plan_run
from ka_ray.student.plan import make_plan
from ka_ray.teachers import Teacher, build_teacher, load_teacher
from ka_ray.teachers.on_demand import TeachersOnDemand


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
        {**first, "name": f"t{i}", "classes": [f"{i} {name}" for name in first["classes"]]} for i in range(4)
    ]
    return load_config("student.start=random")  # another start compares the weights of all teachers


def test_a_run_is_planned_with_one_teacher_in_memory(four_teachers, monkeypatch):
    count = LoadCount(build_teacher)
    monkeypatch.setattr(setup, "build_teacher", count)
    planned = plan_run(four_teachers, students=[()])
    assert [*planned.plan.label_sets.by_teacher] == ["t0", "t1", "t2", "t3"]
    assert count.loaded >= 4
    assert count.most == 1


def test_a_plan_of_teachers_on_demand_equals_that_of_loaded_ones(four_teachers):
    count = LoadCount(load_teacher)
    on_demand = TeachersOnDemand(four_teachers.teachers, count)
    found = make_plan(four_teachers, on_demand)
    assert (count.loaded, count.most) == (4, 1)
    expected = make_plan(four_teachers, [load_teacher(teacher) for teacher in four_teachers.teachers])
    assert found.spec == expected.spec
    assert found.paths == expected.paths
    assert (found.channels, found.spaces) == (expected.channels, expected.spaces)


def test_teachers_on_demand_are_a_sequence(four_teachers):
    teachers = TeachersOnDemand(four_teachers.teachers)
    assert len(teachers) == 4
    assert [teacher.name for teacher in teachers] == ["t0", "t1", "t2", "t3"]
    assert [teacher.name for teacher in teachers[2:]] == ["t2", "t3"]
    assert teachers[-1].name == "t3"
