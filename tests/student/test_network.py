"""Test the student network: its stages, its adapters, and that it is loaded as it was saved."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ka_ray.errors import InputError
from ka_ray.student import Student, StudentSpec, load_student, save_student
from ka_ray.teachers import build_network
from ka_ray.teachers.networks import STUDENT_NETWORK

WIDTHS = {"conv1": 5, "conv2": 7}
NETWORK = "ka_ray.teachers.plain:plain_conv_net"
RESNET = {"stem": "bn1", "early": "layer1", "late": "layer3", "pooled": "avgpool"}


@pytest.fixture
def student(make_spec) -> Student:
    return Student(make_spec("plain", WIDTHS, widths=[4, 6])).eval()


def test_scores_equal_those_of_the_layers_in_turn(student):
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


def test_a_tap_can_have_another_name_than_its_layer(make_spec):
    spec = make_spec("plain", {"middle": 7}, widths=[4, 6, 8])
    student = Student(replace(spec, paths={"middle": "conv2"}))
    assert list(student.stages) == ["middle", "scores"]
    assert student.shapes == {"middle": (7, 4, 4)}


def test_a_student_of_a_family_has_the_shapes_of_its_taps_and_keeps_no_adapter(student):
    assert student.shapes == {"conv1": (5, 8, 8), "conv2": (7, 4, 4)}
    assert student.kept_adapters == {}
    assert all(module.training for module in Student(student.spec).modules())


def test_a_student_of_a_family_has_no_batch_norm_and_no_dropout(make_spec):
    with torch.device("meta"):
        student = Student(make_spec("vgg11_bn", {}, image_size=32))
    assert not any(isinstance(m, nn.BatchNorm2d | nn.Dropout) for m in student.modules())
    assert all(m.bias is not None for m in student.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_the_spec_lists_the_classes_teacher_by_teacher(student):
    assert student.spec.classes == ("class_0", "class_1", "class_2", "class_3")
    assert student.spec.taps == ("conv1", "conv2")


def make_cut_spec(make_spec: Any, network: str, paths: Mapping[str, str], **options: Any) -> StudentSpec:
    return replace(make_spec(network, {}, **options), paths=paths)


def make_images(size: int, count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@torch.no_grad()
def test_an_untrained_cut_student_equals_its_network_plus_identity_adapters(make_spec):
    torch.manual_seed(5)
    student = Student(make_cut_spec(make_spec, "resnet18", RESNET, image_size=32)).eval()
    torch.manual_seed(5)
    network = build_network("resnet18", {}, 4).eval()
    images = make_images(32)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = network(((images.movedim(1, -1) / 255 - mean) / std).movedim(-1, 1))
    assert expected.std() > 1e-2
    torch.testing.assert_close(student(images), expected, rtol=1e-5, atol=1e-5)
    assert student.shapes == {
        "stem": (64, 16, 16),
        "early": (64, 8, 8),
        "late": (256, 2, 2),
        "pooled": (512, 1, 1),
    }
    # The adapter of the stem can be folded into its conv. The other stages end in a ReLU or a pooling.
    assert student.kept_adapters == {
        "early": 64 * 64 + 64,
        "late": 256 * 256 + 256,
        "pooled": 512 * 512 + 512,
    }
    without_adapters = sum(parameter.numel() for parameter in network.parameters())
    assert sum(parameter.numel() for parameter in student.parameters()) == without_adapters + sum(
        student.kept_adapters.values()
    )


def test_a_kept_adapter_gets_gradients(make_spec):
    paths = {"map": "pool1", "vector": "flatten"}
    student = Student(make_cut_spec(make_spec, NETWORK, paths, num_classes=4, widths=[5, 6])).train()
    assert student.kept_adapters == {"map": 5 * 5 + 5, "vector": 6 * 6 + 6}
    student(make_images(8)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in student.stages["map"].adapter.parameters())
    assert [type(student.stages[tap].adapter) for tap in paths] == [nn.Conv2d, nn.Linear]


@pytest.mark.parametrize("cut", [False, True])
def test_an_image_that_is_too_small_is_refused_when_the_student_is_built(make_spec, cut):
    with_four_poolings = {"widths": [4] * 5}
    spec = make_spec("plain", {}, **with_four_poolings)
    if cut:
        spec = make_cut_spec(make_spec, NETWORK, {"first": "norm1"}, num_classes=4, **with_four_poolings)
    with pytest.raises(
        InputError, match=rf"student\.network '{spec.network}': it fails on an image of 8 x 8 pixels: .*small"
    ):
        Student(spec)
    assert Student(replace(spec, preprocessing=dict(spec.preprocessing) | {"size": 16, "crop": 16}))(
        make_images(16)
    ).shape == (3, 4)


@pytest.mark.parametrize("num_scores", [3, 5])
def test_a_wrong_number_of_scores_is_refused(make_spec, num_scores):
    spec = make_cut_spec(make_spec, NETWORK, {"first": "norm1"}, num_classes=num_scores, widths=[4])
    with pytest.raises(
        InputError,
        match=rf"student\.network '{NETWORK}': gives scores of shape \({num_scores},\) for 4 classes",
    ):
        Student(spec)


def test_a_shared_class_has_one_score(make_spec):
    label_sets = {"low": ("cat", "dog", "cow"), "high": ("dog", "owl")}
    spec = replace(make_spec("plain", {}, widths=[4]), label_sets=label_sets, rule="max")
    assert spec.classes == ("cat", "dog", "cow", "owl")
    assert Student(spec)(make_images(8)).shape == (3, 4)


def test_a_cut_student_is_loaded_as_it_was_saved(make_spec, randomised, tmp_path):
    paths = {"b": "norm1", "a": "pool1", "c": "flatten"}  # in the order of the network, not of names
    spec = make_cut_spec(make_spec, NETWORK, paths, num_classes=4, widths=[5, 6])
    student = randomised(Student(replace(spec, widths={"b": 5, "a": 5, "c": 6}, rule="concatenate")))
    for parameter in student.parameters():
        nn.init.normal_(parameter, std=0.5)
    save_student(student, tmp_path / "new" / "folders" / "student")
    loaded = load_student(tmp_path / "new" / "folders" / "student")
    assert loaded.spec == student.spec
    assert loaded.spec.taps == ("b", "a", "c")
    assert (loaded.shapes, loaded.kept_adapters) == (student.shapes, {"a": 30, "c": 42})
    images = make_images(8)
    assert torch.equal(loaded(images), student(images))
    assert not any(module.training for module in loaded.modules())


def test_a_student_of_a_family_is_loaded_as_it_was_saved(student, tmp_path):
    save_student(student, tmp_path)
    loaded = load_student(tmp_path)
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    assert loaded.spec == student.spec
    assert torch.equal(loaded(images), student(images))
    assert not any(module.training for module in loaded.modules())


def test_the_folder_has_two_files_and_names_the_classes(student, tmp_path):
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
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_student(tmp_path / "nowhere")


@pytest.mark.parametrize("nested", [False, True])
def test_a_folder_that_names_a_function_of_its_own_needs_trust(tmp_path, make_spec, monkeypatch, nested):
    save_student(Student(make_spec("plain", {"conv1": 4}, widths=[4])), tmp_path)
    content = json.loads((tmp_path / "student.json").read_text())
    if nested:  # a student of students
        inner = {key: value for key, value in content.items() if key != "classes"}
        content |= {"network": STUDENT_NETWORK, "arguments": inner | {"network": "evil:run"}}
    else:
        content["network"] = "evil:run"
    (tmp_path / "student.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'evil:run', which would run, .*If you trust it, .*--trust"):
        load_student(tmp_path)
    with pytest.raises(InputError, match="cannot import 'evil'"):
        load_student(tmp_path, trust=True)
