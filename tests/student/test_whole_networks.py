"""Test students of networks that torch.fx cannot trace: without taps, the network is called as it is."""

import copy

import pytest
import torch
import transformers
from PIL import Image
from torch import nn

from ka_ray.config import Config, Decoding, Preprocessing, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.runs.setup import plan_run
from ka_ray.student import Student, StudentSpec, load_student, save_student
from ka_ray.student.cut import cut_into_stages
from ka_ray.student.start import build_start, find_head
from ka_ray.student.transfer import transfer_weights
from ka_ray.teachers import load_teacher
from ka_ray.teachers.transformers_networks import network_arguments

LABELS = {"dogs": ("a", "b", "c"), "birds": ("u", "v")}
SMALL = {
    "vit": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}
SIZES: dict[str, dict[str, int]] = {"vit": {"image_size": 32, "patch_size": 8}, "resnet": {}}


def build(kind: str, classes: int) -> nn.Module:
    config = transformers.AutoConfig.for_model(kind, **SMALL[kind], **SIZES[kind], num_labels=classes)
    return transformers.AutoModelForImageClassification.from_config(config)


@pytest.fixture(params=["vit", "resnet"])
def merged(request, tmp_path):
    """Two models of transformers, as folders of the library; their teachers, and the spec of a student."""
    models, teachers = {}, []
    for name, classes in LABELS.items():
        torch.manual_seed(len(name))
        models[name] = build(request.param, len(classes)).eval()
        models[name].save_pretrained(tmp_path / name)
        arguments = network_arguments(models[name].config.to_dict())
        section = {"name": name, "network": "transformers", "arguments": arguments, "classes": list(classes)}
        section |= {"checkpoint": str(tmp_path / name / "model.safetensors")}
        teachers.append(load_teacher(TeacherConfig.model_validate(section)))
    spec = StudentSpec(
        network="transformers",
        arguments=arguments,
        paths={},
        widths={},
        label_sets=LABELS,
        rule=None,
        preprocessing=Preprocessing().resolve(32, "squash").model_dump(mode="json"),
        decoding=Decoding().model_dump(mode="json"),
    )
    return request.param, models, teachers, spec


def test_a_student_starts_from_the_mean_and_is_loaded_as_it_was_saved(merged, tmp_path):
    kind, models, teachers, spec = merged
    start = build_start(spec, [teacher.network.state_dict() for teacher in teachers], teachers)
    student = Student(spec).eval()
    transfer_weights(start.network, student)
    # By hand: the mean of all weights but those of the heads, which stand side by side.
    expected = build(kind, 5).eval()
    states = [model.state_dict() for model in models.values()]
    state = {}
    for key, tensor in expected.state_dict().items():
        parts = [one[key] for one in states]
        same = parts[0].shape == parts[1].shape == tensor.shape
        state[key] = (parts[0] + parts[1]) / 2 if same else torch.cat(parts)
        state[key] = state[key].to(tensor.dtype)
    expected.load_state_dict(state)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        scores = expected(student.preprocess(images)).logits
        torch.testing.assert_close(student(images), scores, atol=1e-5, rtol=1e-5)
        save_student(student, tmp_path / "out")
        torch.testing.assert_close(load_student(tmp_path / "out")(images), scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(copy.deepcopy(student)(images), scores, atol=1e-5, rtol=1e-5)
    student.train()(images).sum().backward()
    assert all(weight.grad is not None for weight in student.parameters() if weight.requires_grad)


def test_it_cannot_be_cut(merged):
    _, models, _, _ = merged
    network = models["dogs"]
    path = next(name for name, module in network.named_modules() if isinstance(module, nn.Dropout | nn.ReLU))
    with pytest.raises(InputError):
        cut_into_stages(network, {"tap": path}, 3)
    with pytest.raises(InputError):
        cut_into_stages(network, {})
    assert [*cut_into_stages(network, {}, 3)] == ["scores"]


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        (
            "timm/swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1]},
        ),
        (
            "timm/swinv2_tiny_window8_256",
            {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1]},
        ),
        ("timm/beit_base_patch16_224", {"img_size": 32, "embed_dim": 24, "num_heads": 3, "depth": 1}),
        ("timm/eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),
        ("mnasnet0_5", {}),
    ],
)
def test_networks_with_constants_and_versions_start_from_their_weights(network, arguments):
    """torch.fx lists the constants of some networks as if they were weights; mnasnet asks for a version."""
    size = arguments.get("img_size", 64)
    spec = StudentSpec(
        network=network,
        arguments=arguments,
        paths={},
        widths={},
        label_sets={"a": ("x", "y"), "b": ("z",)},
        rule=None,
        preprocessing=Preprocessing().resolve(size, "squash").model_dump(mode="json"),
        decoding=Decoding().model_dump(mode="json"),
    )
    source = spec.build_network()
    start = build_start(spec, [source.state_dict()], [])
    student = Student(spec).eval()
    transfer_weights(start.network, student)
    assert start.share == 1.0
    assert start.random == tuple(find_head(spec, []))
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        expected = start.network(student.preprocess(images))
        torch.testing.assert_close(student(images), expected, atol=1e-5, rtol=1e-4)


def test_a_run_of_two_of_them_is_planned(merged, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(80):
        Image.new("RGB", (32, 32), (3 * number, 0, 99)).save(tmp_path / "photos" / f"{number}.png")
    images = {"source": "folder", "path": str(tmp_path / "photos"), "labelled": False, "size": 32}
    teachers = [
        {"name": name, "from": str(tmp_path / name), "classes": list(classes), "preprocessing": {"size": 32}}
        for name, classes in LABELS.items()
    ]
    config = Config.model_validate({"name": "run", "images": images, "teachers": teachers})
    planned = plan_run(config, [()])
    assert any("start average: " in note for note in planned.notes)
    assert (planned.plan.spec.network, dict(planned.plan.spec.paths)) == ("transformers", {})
