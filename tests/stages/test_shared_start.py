"""Test that students which start alike have one start, and others their own."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from ka_ray import stages
from ka_ray.runs import steps
from ka_ray.runs.steps import StudentJob, learn
from ka_ray.stages import run_stages, start
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.shared_start import copy_start, describe_origin_of_start
from ka_ray.stages.start import start_student_folder


def weights_of(folder, stage):
    return load_file(stage_summary_path(folder, stage).with_suffix(".safetensors"))


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ("joint.epochs=0", True),
        ("joint.learning_rate=0.5", True),
        ("layers.behind_start=true", True),
        ("baseline=distill", True),
        ("joint.batch_size=16", False),
        ("student.start={teacher: high}", False),
        ("student.head=ridge", False),
        ("seed=1", False),
        ("scores.center=true", False),
        ("scores.gate=self", False),
    ],
)
def test_students_start_alike_unless_something_in_front_of_their_start_differs(make_inputs, change, alike):
    one, other = make_inputs("student.start=average"), make_inputs("student.start=average", change)
    origins = [describe_origin_of_start(inputs.config, inputs.plan) for inputs in (one, other)]
    assert None not in origins
    assert (origins[0] == origins[1]) is alike


def test_random_weights_are_no_start_to_share(make_inputs):
    one = make_inputs()
    assert describe_origin_of_start(one.config, one.plan) is None


def test_a_copied_start_leads_to_the_same_student_as_one_of_its_own(make_inputs, tmp_path, monkeypatch):
    built = make_inputs("student.start=average", "joint.epochs=2")
    run_stages(built)
    monkeypatch.delitem(stages.STAGES, "start")  # none can be built any more
    copied = dataclasses.replace(built, folder=tmp_path / "copied")
    copy_start([tmp_path / "unfinished", built.folder], copied.folder)
    run_stages(copied)
    for stage in ("start", "joint"):
        assert_equal_weights(weights_of(copied.folder, stage), weights_of(built.folder, stage))
    one, other = (stage_summary_path(folder, "start").read_text() for folder in (built.folder, copied.folder))
    assert json.loads(one) == json.loads(other)
    names = {path.name for path in start_student_folder(built.folder).iterdir()}
    assert {path.name for path in start_student_folder(copied.folder).iterdir()} == names


def test_a_start_that_is_there_is_kept(make_inputs, tmp_path):
    built = make_inputs("student.start=average", "joint.epochs=0")
    run_stages(built)
    own = stage_summary_path(tmp_path / "own", "start")
    own.parent.mkdir(parents=True)
    own.write_text("{}")
    copy_start([built.folder], tmp_path / "own")
    assert own.read_text() == "{}"


def test_of_several_students_of_a_command_each_start_is_built_once(make_inputs, tmp_path, monkeypatch):
    given = {
        "start": ("student.start=average", "joint.epochs=0"),
        "joint": ("student.start=average", "joint.epochs=1"),
        "other": ("student.start={teacher: low}", "joint.epochs=0"),
    }
    inputs = {name: make_inputs(*overrides) for name, overrides in given.items()}
    jobs = [StudentJob(name, i.config, i.plan, tmp_path / name) for name, i in inputs.items()]
    data, built = inputs["start"].data, []
    make = start.make_start
    monkeypatch.setitem(stages.STAGES, "start", lambda i: built.append(i.folder.name) or make(i))
    monkeypatch.setattr(
        steps, "train", lambda run, what, work: work(torch.device("cpu"), lambda progress: None)
    )

    class Run:
        folder = data

        def notify(self, *notes):
            pass

    learn(Run(), jobs)
    assert built == ["start", "other"]
    assert_equal_weights(weights_of(tmp_path / "start", "start"), weights_of(tmp_path / "joint", "start"))
    assert (tmp_path / "joint" / "student.json").exists()
