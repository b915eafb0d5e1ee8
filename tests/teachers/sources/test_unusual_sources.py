"""Test what a source must not do: run code, change what the user sees, or be read as something else."""

import json

import pytest
import timm
import torch
import torchvision
import transformers
from timm.models import save_for_hf

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.student import Student
from ka_ray.student.network import save_student
from ka_ray.teachers import build_network, load_teacher
from ka_ray.teachers.networks import STUDENT_NETWORK
from ka_ray.teachers.sources.describe import describe_teacher
from ka_ray.teachers.transformers_networks import network_arguments

NAMES = ["cat", "dog", "owl"]


def describe(given) -> TeacherConfig:
    return describe_teacher(TeacherConfig.model_validate(given))[0]


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "pets.pt"
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), path)
    return path


@pytest.fixture
def student_folder(tmp_path, make_spec):
    save_student(Student(make_spec("plain", {"conv1": 4}, widths=[4])), tmp_path / "merged")
    return tmp_path / "merged"


def change_json(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_factory_of_a_students_folder_needs_consent(student_folder):
    change_json(student_folder / "student.json", network="pip._internal.cli.main:main", arguments={})
    with pytest.raises(InputError, match=r"built by the function 'pip.*If you trust it, name it"):
        describe(str(student_folder))
    trusted = {"network": "pip._internal.cli.main:main"}
    config = describe({"from": str(student_folder), "arguments": trusted})
    assert config.arguments["network"] == trusted["network"]


def test_a_factory_inside_a_student_of_students_is_refused(student_folder):
    inner = json.loads((student_folder / "student.json").read_text())
    inner |= {"network": "pip._internal.cli.main:main", "arguments": {}}
    change_json(student_folder / "student.json", network=STUDENT_NETWORK, arguments=inner)
    for arguments in ({}, {"network": "pip._internal.cli.main:main"}):
        with pytest.raises(InputError, match=r"built by the function 'pip._internal"):
            describe({"from": str(student_folder), "arguments": arguments})


@pytest.mark.parametrize("given", [{"training": {"epochs": 1}}, {"preprocessing": {"size": 32}}])
def test_an_unknown_network_of_timm_is_said_to_be_unknown(given):
    network = {"name": "a", "network": "timm/resnet19", "classes": NAMES}
    with pytest.raises(InputError, match=r"teachers\.a: network 'timm/resnet19': timm has no such model"):
        describe({**network, **given})


def test_settings_that_make_transformers_fetch_code_are_left_out():
    harmful = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")
    given = {"model_type": "vit", "hidden_size": 8, **dict.fromkeys(harmful, "evil/kernel")}
    assert network_arguments(given) == {"model_type": "vit", "hidden_size": 8}


@pytest.mark.parametrize(
    "arguments",
    [
        {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "x"}},
        {"model_type": "vit_hybrid", "use_pretrained_backbone": True, "backbone": "resnet50"},
        {"model_type": "vit", "backbone": "timm/resnet18"},
    ],
)
def test_networks_of_transformers_that_would_read_others_are_refused(arguments):
    with pytest.raises(InputError, match=r"named as timm/MODEL|hold other published ones"):
        build_network("transformers", arguments, 3)


@pytest.mark.parametrize(
    ("given", "size", "crop"),
    [
        ({"size": 32}, 32, 32),
        ({"size": 64, "resize": "squash"}, 64, 64),
        ({"size": 300}, 300, 224),
        ({"crop": 160}, 182, 160),
        ({"crop": 224, "crop_fraction": 1.0}, 224, 224),
    ],
)
def test_a_size_of_the_users_own_is_not_framed_in_black(given, size, crop):
    config = describe(
        {"name": "a", "network": "timm/mobilenetv3_small_050", "classes": NAMES} | {"preprocessing": given}
    )
    view = view_of(config.preprocessing.resolve(size=8, resize="crop"))
    assert (view.size, view.crop) == (size, crop)


def test_a_preset_with_a_smaller_size_is_not_framed_in_black():
    config = TeacherConfig(
        name="a", network="plain", classes=NAMES, preprocessing={"preset": "torchvision", "size": 128}
    )
    view = view_of(config.preprocessing.resolve(size=8, resize="crop"))
    assert (view.size, view.crop) == (128, 128)


def test_a_file_beside_a_student_is_itself(student_folder, checkpoint):
    other = student_folder / "dogs.pt"
    other.write_bytes(checkpoint.read_bytes())
    config = describe({"from": str(other), "network": "squeezenet1_1", "classes": NAMES})
    assert config.checkpoint == other
    for name in ("student.safetensors", "student.json"):
        assert describe(str(student_folder / name)).checkpoint == student_folder / "student.safetensors"


def test_a_config_of_the_users_own_beside_a_checkpoint_is_left_alone(checkpoint):
    (checkpoint.parent / "config.json").write_text(json.dumps({"lr": 0.1}))
    config = describe({"from": str(checkpoint), "classes": NAMES})
    assert (config.network, config.checkpoint) == ("squeezenet1_1", checkpoint)


def test_the_name_of_weights_says_the_pixels_of_a_file(checkpoint):
    given = {"from": str(checkpoint), "classes": NAMES}
    assert describe({**given, "weights": "IMAGENET1K_V1"}).preprocessing.size == 256
    with pytest.raises(InputError, match=r"weights: squeezenet1_1 has no 'BOGUS'"):
        describe({**given, "weights": "BOGUS"})


def test_a_network_with_the_name_of_weights_keeps_the_arguments_that_were_found(tmp_path):
    network = timm.create_model("resnet18", num_classes=3, global_pool="max")
    labels = {"label_names": NAMES}
    save_for_hf(
        network,
        str(tmp_path),
        model_config=labels,
        model_args={"global_pool": "max"},
        safe_serialization=True,
    )
    config = describe({"from": str(tmp_path), "network": "timm/resnet18.a1_in1k"})
    assert config.arguments["global_pool"] == "max"
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    teacher = load_teacher(config)
    with torch.no_grad():
        torch.testing.assert_close(teacher.scores(pixels), network.eval()(teacher.preprocess(pixels)))


def test_names_of_classes_in_another_form_are_asked_for_and_can_be_given(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    save_for_hf(network, str(tmp_path), model_config={"label_names": [1, 2, 3]}, safe_serialization=True)
    with pytest.raises(InputError, match=r"classes: .* does not name them"):
        describe(str(tmp_path))
    assert list(describe({"from": str(tmp_path), "classes": NAMES}).classes) == NAMES


def save_transformers_network(folder) -> None:
    settings = transformers.ResNetConfig(
        depths=[1] * 4, embedding_size=8, hidden_sizes=[8] * 4, id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    transformers.ResNetForImageClassification(settings).save_pretrained(folder)


def test_pixels_that_cannot_be_expressed_can_be_given(tmp_path):
    save_transformers_network(tmp_path)
    transformers.PerceiverImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"preprocessing: .*Perceiver.* cannot express.*; give it"):
        describe(str(tmp_path))
    given = {"from": str(tmp_path), "preprocessing": {"preset": "huggingface"}}
    assert describe(given).preprocessing.size == 224


def test_another_number_of_names_than_scores_is_said(tmp_path):
    save_transformers_network(tmp_path)
    config = describe({"from": str(tmp_path), "classes": [*NAMES, "bee"]})
    with pytest.raises(InputError, match="the number of classes differs from the 4 that are named"):
        load_teacher(config)


def test_weights_that_are_not_finite_are_named(checkpoint):
    state = torch.load(checkpoint)
    state["classifier.1.bias"][0] = float("nan")
    torch.save(state, checkpoint)
    with pytest.raises(InputError, match=r"teachers.pets: from: .*its weights are NaN or infinite"):
        describe({"from": str(checkpoint), "classes": NAMES})


def test_a_published_network_is_preferred_and_the_other_one_named(tmp_path):
    network = timm.create_model("resnetblur18", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "blur.pt")
    shown = describe_teacher(
        TeacherConfig.model_validate({"from": str(tmp_path / "blur.pt"), "classes": NAMES})
    )[1]
    assert "the weights also fit timm/resnetblur18, which have no published weights" in shown


def test_only_a_key_for_it_names_the_architecture(tmp_path, monkeypatch):
    few = ["mobilenetv3_small_100", "tf_mobilenetv3_small_100"]
    monkeypatch.setattr(timm, "list_models", lambda: few)
    weights = build_network(f"timm/{few[1]}", {}, 3).state_dict()
    path = tmp_path / "pets.ckpt"
    torch.save({"state_dict": weights, "hyper_parameters": {"distilled_from": few[0]}}, path)
    with pytest.raises(InputError, match="compute different scores"):
        describe({"from": str(path), "classes": NAMES})
    torch.save({"state_dict": weights, "hyper_parameters": {"arch": f"{few[1]}.in1k"}}, path)
    config, shown = describe_teacher(TeacherConfig.model_validate({"from": str(path), "classes": NAMES}))
    assert config.network == f"timm/{few[1]}"
    assert "its name under 'arch'" in shown
