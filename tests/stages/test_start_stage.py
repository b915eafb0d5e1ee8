"""Test the stage `start`: the student begins as the mean of its teachers or as one of them, then learns."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES
from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.start import describe_start, start_student_folder
from ka_ray.student import Student, load_student
from ka_ray.student.start import build_start
from ka_ray.teachers import build_network, load_teacher


def weights_of(inputs, stage):
    return load_file(stage_summary_path(inputs.folder, stage).with_suffix(".safetensors"))


def test_the_average_is_where_joint_learning_begins(make_inputs):
    inputs = make_inputs("student.start=average", "joint.epochs=0")
    run_stages(inputs)
    assert list_stages(inputs.config) == ("start", "joint")
    start, joint = weights_of(inputs, "start"), weights_of(inputs, "joint")
    assert start.keys() == joint.keys()
    assert all(torch.equal(start[key], joint[key]) for key in start)
    saved = load_student(start_student_folder(inputs.folder)).state_dict()
    assert all(torch.equal(saved[key], start[key]) for key in start)

    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    states = [teacher.network.state_dict() for teacher in teachers]
    mean = build_start(inputs.plan.spec, states, teachers).network
    # As torch's own loop would measure the batch norms (torch.optim.swa_utils.update_bn), in the same order.
    preprocess = Student(inputs.plan.spec).preprocess
    batches = list(inputs.batches("joint", inputs.store(FEATURES), ["image"]).epoch(0))
    torch.optim.swa_utils.update_bn([preprocess(batch["image"]) for batch in batches], mean)
    pixels = batches[0]["image"]
    with torch.no_grad():
        expected = mean.eval()(preprocess(pixels))
        found = load_student(start_student_folder(inputs.folder))(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_joint_learning_goes_on_from_the_start(make_inputs):
    inputs = make_inputs("student.start={teacher: high}", "joint.epochs=2")
    run_stages(inputs)
    history = json.loads(stage_summary_path(inputs.folder, "joint").read_text())["history"]
    assert history[-1]["losses"]["loss"] < history[0]["losses"]["loss"]
    start, joint = weights_of(inputs, "start"), weights_of(inputs, "joint")
    assert not torch.equal(start["stages.conv1.0.weight"], joint["stages.conv1.0.weight"])


def test_a_baseline_has_the_same_start(make_inputs):
    inputs = make_inputs("student.start=average", "baseline=distill")
    assert list_stages(inputs.config) == ("start", "joint")
    assert list_stages(make_inputs("baseline=distill").config) == ("joint",)
    assert list_stages(make_inputs().config) == ("codes", "layers", "joint")


def describe(inputs):
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    return describe_start(inputs.config, inputs.plan.spec, teachers)


def test_teachers_of_different_origin_are_noticed(make_inputs):
    note = describe(make_inputs("student.start=average"))
    assert "weights come from its start" in note
    assert "their mean is probably useless" in note


def test_a_checkpoint_that_fits_in_part_is_said(make_inputs, tmp_path):
    state = build_network("plain", {"widths": [4, 7]}, 3).state_dict()
    save_file(state, tmp_path / "wider.safetensors")
    inputs = make_inputs(f"student.start={{checkpoint: {tmp_path}/wider.safetensors}}")
    assert "random are conv2.weight, norm2.weight" in describe(inputs)
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="no weight before the head fits"):
        describe(make_inputs(f"student.start={{checkpoint: {tmp_path}/other.safetensors}}"))


def test_teachers_of_two_architectures_are_not_averaged(make_inputs):
    inputs = make_inputs()
    teachers = [load_teacher(teacher) for teacher in inputs.config.teachers]
    teachers[1].network = build_network("plain", {"widths": [4, 6, 8]}, 5)
    config = make_inputs("student.start=average").config
    with pytest.raises(InputError, match="low and high differ in 6 weights, such as conv3"):
        describe_start(config, inputs.plan.spec, teachers)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.start=best"], "student.start.*'random' or 'average'"),
        (["student.start={teacher: owl}"], "student.start.teacher: no teacher 'owl'; there are"),
        (["student.start={}"], "give either `teacher` or `checkpoint`"),
        (["student.start={checkpoint: /nowhere.pt}"], "/nowhere.pt does not exist"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(*overrides)
    assert isinstance(load_config(), Config)
