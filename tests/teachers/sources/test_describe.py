"""Test that a teacher is found out from one line, that its config overrides it, and that it scores the same.

Teachers are compared with the network that wrote the files, on images through the library's own transform.
"""

import argparse
import hashlib
import json

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import nn

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.student import Student, StudentSpec
from ka_ray.student.network import save_student
from ka_ray.teachers import load_teacher
from ka_ray.teachers.sources.describe import describe_teacher

NAMES = ["cat", "dog", "owl"]


def describe(given) -> TeacherConfig:
    return describe_teacher(TeacherConfig.model_validate(given))[0]


def image_of_noise(width: int = 301, height: int = 257) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def scores_of(config: TeacherConfig, image: Image.Image) -> np.ndarray:
    """The scores of a described teacher for an image, as a run computes them."""
    view = view_of(config.preprocessing.resolve(size=64, resize="crop"))
    return load_teacher(config).scores(torch.from_numpy(view.apply(image))[None])[0].numpy()


def scores_by(network: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        output = network.eval()(pixels[None])
    return getattr(output, "logits", output)[0].numpy()


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


# --- Folders -------------------------------------------------------------------------------------------


@pytest.fixture
def timm_folder(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    folder = tmp_path / "hf" / "my-pets"
    save_for_hf(network, str(folder), model_config={"label_names": NAMES}, safe_serialization=True)
    return folder, network


@pytest.mark.parametrize("source", ["folder", "local-dir", "file"])
def test_a_folder_of_timm_is_a_teacher(timm_folder, source):
    folder, network = timm_folder
    path = {"folder": f"{folder}/", "local-dir": f"local-dir:{folder}", "file": f"{folder}/model.safetensors"}
    config = describe(path[source])
    assert (config.name, config.network, list(config.classes)) == (
        "my-pets",
        "timm/mobilenetv3_small_050",
        NAMES,
    )
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


def test_what_was_found_is_shown(timm_folder):
    folder, _ = timm_folder
    shown = describe_teacher(TeacherConfig.model_validate(str(folder)))[1]
    assert shown.splitlines() == [
        f"teacher my-pets: a model of timm, {folder}",
        "    network: timm/mobilenetv3_small_050",
        "    classes: 3: cat, dog, owl",
        "    pixels: shorter to crop / 0.875, crop 224, bicubic, mean 0.485 0.456 0.406, "
        "std 0.229 0.224 0.225 (from config.json)",
    ]


def test_every_key_can_be_overridden(timm_folder, tmp_path):
    folder, _ = timm_folder
    names = tmp_path / "names.txt"
    names.write_text("\n".join(["Katze", "Hund", "Eule"]))
    config = describe(
        {
            "from": str(folder),
            "name": "tiere",
            "classes": str(names),
            "preprocessing": {"mean": [0.5, 0.5, 0.5], "crop": 160},
        }
    )
    assert (config.name, config.classes) == ("tiere", ("Katze", "Hund", "Eule"))
    assert config.preprocessing.mean == (0.5, 0.5, 0.5)
    # What is not given stays as the source says it.
    assert (config.preprocessing.crop, config.preprocessing.crop_fraction) == (160, 0.875)
    assert config.preprocessing.std == (0.229, 0.224, 0.225)
    assert describe({"from": str(folder), "preprocessing": {"preset": "cifar"}}).preprocessing.size == 32
    assert describe({"from": str(folder), "preprocessing": {"size": 250}}).preprocessing.crop_fraction is None


def test_a_grey_network_of_timm_gets_grey_images(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", num_classes=3, in_chans=1)
    labels = {"label_names": NAMES}
    save_for_hf(network, str(tmp_path), model_config=labels, safe_serialization=True)
    config = describe(str(tmp_path))
    assert config.preprocessing.channels == 1
    saved = json.loads((tmp_path / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config({}, pretrained_cfg=saved), is_training=False)
    expected = scores_by(network, transform(image_of_noise().convert("L")))
    assert_same(scores_of(config, image_of_noise()), expected)


def test_a_described_teacher_describes_itself(timm_folder):
    """Runs keep the described config, and load it again when they resume."""
    config = describe(str(timm_folder[0]))
    assert describe(config.model_dump(mode="json")) == config


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_transformers_is_a_teacher(tmp_path, weights):
    labels = {0: "cat", 1: "dog", 2: "owl"}
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, id2label=labels, label2id={name: index for index, name in labels.items()},
    )  # fmt: skip
    network = transformers.ViTForImageClassification(settings)
    network.save_pretrained(tmp_path)
    if weights == "pytorch_model.bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(network.state_dict(), tmp_path / weights)
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    config = describe(tmp_path)
    assert (config.network, list(config.classes)) == ("transformers", NAMES)
    pixels = torch.from_numpy(processor(image_of_noise(), return_tensors="np")["pixel_values"][0])
    assert_same(scores_of(config, image_of_noise()), scores_by(network, pixels))


def test_the_classifier_with_two_heads_is_built_as_its_folder_says(tmp_path):
    settings = transformers.DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    network = transformers.DeiTForImageClassificationWithTeacher(settings)
    network.save_pretrained(tmp_path)
    config = describe({"from": str(tmp_path), "preprocessing": {"size": 32, "resize": "squash"}})
    teacher = load_teacher(config)
    assert type(teacher.network).__name__ == "DeiTForImageClassificationWithTeacher"
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        theirs = network.eval()(teacher.preprocess(pixels)).logits
    torch.testing.assert_close(teacher.scores(pixels), theirs)


def test_names_that_transformers_makes_up_are_no_classes(tmp_path):
    transformers.ResNetForImageClassification(
        transformers.ResNetConfig(depths=[1, 1, 1, 1], embedding_size=8, hidden_sizes=[8] * 4, num_labels=3)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r": classes: .* does not name them"):
        describe(str(tmp_path))


def test_a_student_is_a_teacher(tmp_path):
    student = Student(
        StudentSpec(
            network="plain",
            arguments={"widths": [4, 6]},
            paths={"conv1": "conv1", "conv2": "conv2"},
            widths={"conv1": 3, "conv2": 5},
            label_sets={"a": ("cat", "dog"), "b": ("owl", "dog")},
            rule="mean",
            preprocessing={"resize": "shorter", "size": 40, "crop": 32, "mean": [0.5] * 3, "std": [0.2] * 3},
            decoding={},
        )
    ).eval()
    save_student(student, tmp_path / "runs" / "merged")
    config = describe(tmp_path / "runs" / "merged")
    assert (config.name, list(config.classes)) == ("merged", ["cat", "dog", "owl"])
    pixels = torch.from_numpy(student.spec.view.apply(image_of_noise()))
    assert_same(scores_of(config, image_of_noise()), scores_by(student, pixels))


VIT = {"model_type": "vit"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds neither student.json .* nor a config.json"),
        ({"config.json": VIT}, "no weights: model.safetensors or pytorch_model.bin"),
        (
            {"config.json": {}, "model.safetensors": {}},
            r"nor a config.json with `archi.* `model_type`.* `teacher`",
        ),
        ({"config.json": VIT, "model.safetensors.index.json": {}}, "split into several files"),
        ({"config.json": "{"}, "config.json is damaged: it is not JSON"),
        ({"config.json": []}, "is damaged: it holds a list, not an object"),
        ({"student.json": "{"}, "student.json is damaged: it is not JSON"),
        ({"student.json": {"classes": ["a", "b"]}}, r"is not understood \(KeyError: 'preprocessing'\)"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=rf"teachers\.\w+: .*{message}"):
        describe(str(tmp_path))


# --- Files ---------------------------------------------------------------------------------------------


def test_a_checkpoint_of_lightning_is_a_teacher(tmp_path):
    network = torchvision.models.squeezenet1_1(num_classes=3)
    path = tmp_path / "birds" / "lightning_logs" / "version_0" / "checkpoints" / "epoch=3-step=100.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(
        {
            "pytorch-lightning_version": "2.6.0",
            "epoch": 3,
            "state_dict": {f"model.{key}": value for key, value in network.state_dict().items()},
            "hyper_parameters": {"lr": 0.1, "class_names": NAMES},
            "optimizer_states": [{"state": {}, "param_groups": []}],
        },
        path,
    )
    config, shown = describe_teacher(TeacherConfig.model_validate(str(path)))
    assert (config.name, config.network, list(config.classes)) == ("birds", "squeezenet1_1", NAMES)
    assert "hyper_parameters: lr=0.1" in shown
    assert "(assumed: the source does not say it; compare with your training)" in shown
    teacher, pixels = load_teacher(config), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(teacher.scores(pixels), network.eval()(teacher.preprocess(pixels)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", NAMES),
        ("class_names", tuple(NAMES)),
        ("idx_to_class", dict(enumerate(NAMES))),
        ("class_to_idx", {name: index for index, name in enumerate(NAMES)}),
        ("hyper_parameters", {"classes": NAMES}),
        ("args", argparse.Namespace(classes=NAMES)),
    ],
)
def test_names_of_classes_are_found_in_a_checkpoint(tmp_path, key, value):
    network = torchvision.models.squeezenet1_1(num_classes=3)
    torch.save({"net": network.state_dict(), key: value}, tmp_path / "pets.pt")
    assert list(describe({"from": str(tmp_path / "pets.pt"), "network": "squeezenet1_1"}).classes) == NAMES


def test_a_checkpoint_without_names_is_asked_for_them_with_their_number(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "pets.pt")
    message = (
        r"teachers.pets: classes: .*pets.pt does not name them .*it has 3 classes.*; give a list in the "
        r"order of the scores, or a file: --set teachers.pets.classes=FILE$"
    )
    with pytest.raises(InputError, match=message):
        describe(str(tmp_path / "pets.pt"))


def test_the_arguments_of_timm_s_training_script_say_network_and_pixels(tmp_path):
    network = timm.create_model("mobilenetv3_small_050", num_classes=3)
    arguments = argparse.Namespace(
        model="mobilenetv3_small_050", num_classes=3, img_size=96, input_size=None, crop_pct=1.0, mean=None,
        std=[0.2, 0.2, 0.2], interpolation="bilinear", in_chans=None, gp=None, model_kwargs={},
    )  # fmt: skip
    torch.save(
        {"arch": arguments.model, "state_dict": network.state_dict(), "args": arguments, "version": 2},
        tmp_path / "model_best.pth.tar",
    )
    config = describe({"from": str(tmp_path / "model_best.pth.tar"), "classes": NAMES})
    settings = resolve_data_config(vars(arguments), model=network)
    assert settings["input_size"] == (3, 96, 96)
    transform = create_transform(**settings, is_training=False)
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


def test_the_arguments_of_torchvision_s_training_script_say_network_and_pixels(tmp_path):
    network = torchvision.models.squeezenet1_1(num_classes=3)
    arguments = argparse.Namespace(
        model="squeezenet1_1", val_resize_size=70, val_crop_size=64, interpolation="bicubic", epochs=3
    )
    torch.save({"model": network.state_dict(), "args": arguments, "epoch": 2}, tmp_path / "checkpoint.pth")
    config = describe({"from": str(tmp_path / "checkpoint.pth"), "classes": NAMES})
    transform = torchvision.transforms._presets.ImageClassification(
        crop_size=64, resize_size=70, interpolation=torchvision.transforms.InterpolationMode.BICUBIC
    )
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


def test_a_file_of_an_unknown_network_is_refused(tmp_path):
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"teachers.own: from: .*name the teacher's `network`"):
        describe(str(tmp_path / "own.pt"))


# --- Names of published models, from the libraries' caches ---------------------------------------------


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """torch's cache with weights of squeezenet1_1 under the name of the published ones."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = torchvision.models.squeezenet1_1()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "squeezenet1_1-b8a52dc0.pth")
    return network


@pytest.mark.parametrize(
    "given",
    [
        "squeezenet1_1",
        {"from": "squeezenet1_1", "weights": "IMAGENET1K_V1"},
        {"name": "squeezenet1_1", "network": "squeezenet1_1", "weights": "IMAGENET1K_V1"},
    ],
)
def test_published_weights_of_torchvision_are_a_teacher(torch_cache, given):
    config = describe(given)
    assert (config.name, len(config.classes)) == ("squeezenet1_1", 1000)
    assert len(set(config.classes)) == 1000  # two kinds of cranes, for example, get different names
    transform = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    assert_same(scores_of(config, image_of_noise()), scores_by(torch_cache, transform(image_of_noise())))


def test_the_name_of_weights_says_the_pixels_of_a_checkpoint(tmp_path):
    path = tmp_path / "pets.pt"
    torch.save(torchvision.models.resnet18(num_classes=3).state_dict(), path)
    given = {"name": "pets", "network": "resnet18", "checkpoint": str(path), "classes": NAMES}
    config = describe({**given, "weights": "IMAGENET1K_V1"})
    assert (config.checkpoint, list(config.classes)) == (path, NAMES)
    assert (config.preprocessing.size, config.preprocessing.crop) == (256, 224)
    with pytest.raises(InputError, match=r"weights: resnet18 has no 'V1'; it has IMAGENET1K_V1, DEFAULT"):
        describe({**given, "weights": "V1"})


@pytest.mark.parametrize("aux_logits", [False, None])
def test_googlenet_is_built_as_for_its_published_weights(tmp_path, aux_logits):
    """torchvision builds it without auxiliary heads then, and lets it change its input."""
    network = torchvision.models.googlenet(
        num_classes=3, aux_logits=False, transform_input=True, init_weights=False
    )
    torch.save(network.state_dict(), tmp_path / "pets.pt")
    given = {"name": "pets", "network": "googlenet", "checkpoint": tmp_path / "pets.pt", "classes": NAMES}
    given["arguments"] = {} if aux_logits is None else {"aux_logits": aux_logits}
    config = describe({**given, "weights": "IMAGENET1K_V1"})
    transform = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1.transforms()
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


def save_in_hub_cache(cache, name, folder):
    """Put the files of a folder into Hugging Face's cache, as a download would."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / hashlib.sha1(b"main").hexdigest()
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_model_on_the_hub_is_a_teacher(hub_cache, timm_folder):
    folder, network = timm_folder
    save_in_hub_cache(hub_cache, "someone/pets", folder)
    config = describe("hf-hub:someone/pets")
    assert (config.name, list(config.classes)) == ("pets", NAMES)
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


@pytest.mark.parametrize("source", ["timm/mobilenetv3_small_050", "timm/mobilenetv3_small_050.lamb_in1k"])
def test_published_weights_of_timm_are_a_teacher(hub_cache, tmp_path, source):
    network = timm.create_model("mobilenetv3_small_050")
    save_for_hf(network, str(tmp_path / "saved"))
    save_in_hub_cache(hub_cache, "timm/mobilenetv3_small_050.lamb_in1k", tmp_path / "saved")
    config = describe(source)
    assert len(config.classes) == 1000
    assert config.classes[0].startswith("tench")
    transform = create_transform(**resolve_data_config({}, model=network), is_training=False)
    assert_same(scores_of(config, image_of_noise()), scores_by(network, transform(image_of_noise())))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf-hub:someone/absent", r"from: hf-hub:someone/absent cannot be fetched"),
        ("timm/resnet_18", r"from: timm has no published weights 'resnet_18'"),
        ("resnet_18", r"from: 'resnet_18' is no file or folder in .*similar: .*resnet18"),
    ],
)
def test_a_name_that_does_not_exist_is_refused(hub_cache, source, message):
    with pytest.raises(InputError, match=rf"teachers\.\w+: {message}"):
        describe(source)


# --- Networks by name ----------------------------------------------------------------------------------


def test_a_timm_network_has_the_pixels_of_its_data_config():
    given = {
        "name": "a",
        "network": "timm/tf_efficientnet_lite0",
        "classes": NAMES,
        "training": {"epochs": 1},
    }
    found = describe(given).preprocessing
    assert (found.mean, found.std, found.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert describe({**given, "preprocessing": {"mean": [0.4] * 3}}).preprocessing.mean == (0.4,) * 3


def test_a_teacher_that_describes_itself_is_unchanged():
    config = TeacherConfig(name="a", network="plain", classes=("x", "y"), training={"epochs": 1})
    assert describe_teacher(config) == (config, "")
