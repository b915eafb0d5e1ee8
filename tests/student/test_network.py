"""The student: stages end at taps, and a saved student needs nothing but its folder."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from ka_ray.errors import InputError
from ka_ray.student import Student, load_student, save_student

WIDTHS = {"conv1": 5, "conv2": 7}


@pytest.fixture
def student(make_spec) -> Student:
    return Student(make_spec("plain", WIDTHS, widths=[4, 6])).eval()


def test_scores_are_the_chain_of_layers(student):
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    conv1, conv2, head = (m for m in student.stages.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    features = ((images.movedim(1, -1) / 255 - mean) / std).movedim(-1, 1)
    features = functional.conv2d(features, conv1.weight, conv1.bias, padding=1)
    features = functional.max_pool2d(features.relu(), 2)
    features = functional.conv2d(features, conv2.weight, conv2.bias, padding=1).relu().mean((2, 3))
    torch.testing.assert_close(student(images), features @ head.weight.T + head.bias)


def test_layers_are_as_wide_as_their_codes(student):
    layers = [m for m in student.stages.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [layer.weight.shape[:2] for layer in layers] == [(5, 3), (7, 5), (4, 7)]


def test_every_stage_ends_in_the_layer_of_its_tap(student):
    assert list(student.stages) == ["conv1", "conv2", "scores"]
    for stage in student.stages.values():
        assert isinstance(stage[-1], nn.Conv2d | nn.Linear)
        assert not any(isinstance(part, nn.Conv2d | nn.Linear) for part in stage[:-1])


def test_a_layer_without_a_tap_keeps_its_width_and_joins_the_next_stage(make_spec):
    student = Student(make_spec("plain", {"conv2": 7}, widths=[4, 6, 8]))
    layers = [m for m in student.stages.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert list(student.stages) == ["conv2", "scores"]
    assert [layer.weight.shape[0] for layer in layers] == [4, 7, 8, 4]
    assert student(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_no_batch_norm_and_no_dropout(make_spec):
    with torch.device("meta"):
        student = Student(make_spec("vgg11_bn", {}))
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in student.modules())
    assert all(m.bias is not None for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_the_classes_are_teacher_after_teacher(student):
    assert student.spec.classes == ("class_0", "class_1", "class_2", "class_3")
    assert student.spec.taps == ("conv1", "conv2")


def test_a_saved_student_comes_back_the_same(student, tmp_path):
    save_student(student, tmp_path)
    loaded = load_student(tmp_path)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert loaded.spec == student.spec
    assert torch.equal(loaded(images), student(images))
    assert not any(module.training for module in loaded.modules())


def test_the_folder_names_the_classes_for_other_readers(student, tmp_path):
    save_student(student, tmp_path)
    content = json.loads((tmp_path / "student.json").read_text())
    assert content["classes"] == list(student.spec.classes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student.json", "student.safetensors"]


def test_saving_again_replaces_the_student(student, make_spec, tmp_path):
    save_student(student, tmp_path)
    other = Student(make_spec("plain", {"conv1": 3}, widths=[4])).eval()
    save_student(other, tmp_path)
    assert load_student(str(tmp_path)).spec == other.spec


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_folder_without_a_student_is_refused(student, tmp_path, name):
    save_student(student, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"holds no {name}"):
        load_student(tmp_path)
