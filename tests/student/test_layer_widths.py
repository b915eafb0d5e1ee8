"""Test `student.widths`: what it asks for, what is refused, and that a saved student has the same widths."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from ka_ray.config import Config, EnergyWidths
from ka_ray.errors import InputError
from ka_ray.stages.describe_start import describe_start
from ka_ray.student import Student, load_student, save_student
from ka_ray.student.merged import build_merged_network
from ka_ray.student.plan import make_plan
from ka_ray.teachers import build_network, load_teacher

NETWORK = "timm/test_resnet.r160_in1k"
"""timm's smallest residual network: a stem and four blocks."""


@pytest.fixture
def load_residual(config_tree, tmp_path, randomised):
    """Return a function that loads the config of two residual teachers."""
    for teacher in config_tree["teachers"]:
        checkpoint = tmp_path / f"{teacher['name']}_residual.safetensors"
        network = randomised(build_network(NETWORK, {}, len(teacher["classes"])))
        save_file(network.state_dict(), checkpoint)
        teacher |= {"network": NETWORK, "arguments": {}, "checkpoint": str(checkpoint)}
        teacher["preprocessing"] = {"size": 32, "crop": 32}
    config_tree["images"] |= {"size": 32}

    def load(widths: object, **student: object) -> Config:
        return Config.model_validate(config_tree | {"student": {"widths": widths, **student}})

    return load


def plan_of(config: Config):
    return make_plan(config, [load_teacher(teacher) for teacher in config.teachers])


def describe(config: Config) -> str | None:
    return describe_start(config, plan_of(config).spec, [load_teacher(t) for t in config.teachers])


def widths_of(student: Student) -> dict[str, int]:
    return {
        name.split(".", 2)[2]: len(module.weight)
        for name, module in student.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }


def test_a_number_scales_every_group(load_residual):
    own, half = (widths_of(Student(plan_of(load_residual(factor)).spec)) for factor in (1, 0.5))
    assert own == {
        name: len(module.weight)
        for name, module in build_network(NETWORK, {}, 10).named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    assert half == {path: max(2, round(width / 2)) for path, width in own.items()}
    assert plan_of(load_residual(None)).spec.layer_widths == {}
    # The share is not measured yet: the network's own widths stand for those to come.
    assert widths_of(Student(plan_of(load_residual({"energy": 0.9})).spec)) == own


def test_channels_by_layer_hold_for_the_whole_group(load_residual):
    spec = plan_of(load_residual(None)).spec
    groups = spec.width_groups
    stream = next(group for group in groups if len(group.paths) > 1)
    given = {stream.paths[-1]: stream.width + 3}
    resized = plan_of(load_residual(given)).spec
    assert resized.layer_widths == {g.name: g.width for g in groups} | {stream.name: stream.width + 3}
    widths = widths_of(Student(resized))
    assert {widths[path] for path in stream.paths} == {stream.width + 3}


def test_a_saved_student_has_its_widths_and_one_of_before_is_still_read(load_residual, tmp_path, randomised):
    student = randomised(Student(plan_of(load_residual(0.6)).spec)).eval()
    save_student(student, tmp_path / "new")
    loaded, images = load_student(tmp_path / "new"), torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert loaded.spec == student.spec
    torch.testing.assert_close(loaded(images), student(images))
    content = json.loads((tmp_path / "new/student.json").read_text())
    # As a teacher of another run.
    spec = {key: value for key, value in content.items() if key != "classes"}
    merged = build_merged_network(10, **spec)
    assert merged.load_state_dict(student.state_dict())
    save_student(Student(plan_of(load_residual(None)).spec), tmp_path / "old")
    content = json.loads((tmp_path / "old/student.json").read_text())
    del content["layer_widths"]
    (tmp_path / "old/student.json").write_text(json.dumps(content))
    assert load_student(tmp_path / "old").spec.layer_widths == {}


def test_a_family_with_given_widths_is_treated_as_any_network(load_config):
    config = load_config("student.widths={conv1: 3}")
    spec = plan_of(config).spec
    assert not spec.is_family
    own = plan_of(load_config("student.start=exact")).spec
    student = Student(spec)
    assert len(student.stages["scores"].conv1.weight) == 3
    assert set(spec.layer_widths) == {"conv1", "conv2"}
    assert own.is_family


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (3, "student.widths: 3 gives .* channels, more than the .* that all teachers together"),
        ({"nowhere": 4}, "'nowhere' is no layer of the student's network; widths can be given for .*conv1"),
        ({"fc": 9}, "'fc' has a fixed number of channels, or is no conv or linear layer; widths can be"),
        ({"bn1": 9}, "'bn1' has a fixed number of channels, or is no conv"),
        ({"layer1.0.conv1": 1}, r"layer1\.0\.conv1: 1 must lie in 2 \.\.\. "),
        ({"layer1.0.conv1": 10**4}, r"layer1\.0\.conv1: 10000 must lie in 2 \.\.\. "),
    ],
)
def test_widths_that_are_not_possible_are_refused(load_residual, widths, message):
    with pytest.raises(InputError, match=message):
        plan_of(load_residual(widths))


def test_two_numbers_for_one_group_are_refused(load_residual):
    groups = plan_of(load_residual(None)).spec.width_groups
    first, *_, last = next(group.paths for group in groups if len(group.paths) > 1)
    with pytest.raises(InputError, match=f"{first} \\(4\\) and {last} \\(5\\) have the same channels"):
        plan_of(load_residual({first: 4, last: 5}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.widths=0"], "student.widths"),
        (["student.widths={energy: 2}"], "student.widths"),
        (["student.widths={conv1: 0}"], "student.widths"),
        (["student.widths=0.5", "student.start=average"], "student.*of the starts, exact"),
    ],
)
def test_a_config_that_cannot_work_is_refused(load_config, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(*overrides)


def test_auto_solves_a_student_of_other_widths_and_says_so(load_residual):
    note = describe(load_residual(0.5))
    assert note is not None
    assert "layers are computed" in note
    assert "of the starts, only exact applies to other widths" in note
    assert "average" not in note
    energy = load_residual({"energy": 0.9}).student.widths
    assert energy == EnergyWidths(energy=0.9)
    assert math.isclose(energy.energy, 0.9)
