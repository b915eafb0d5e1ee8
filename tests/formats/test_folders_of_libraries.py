"""Test that timm and transformers load what is written for them, with the student's scores, and so do we."""

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

import ka_ray
from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.formats.library_folders import _find_crop_share
from ka_ray.images.views import view_of
from ka_ray.student import Student, save_student
from ka_ray.teachers import load_teacher
from ka_ray.teachers.sources.describe import describe_teacher

ARCHITECTURE = "test_efficientnet"
CLASSES = ["class_0", "class_1", "class_2", "class_3"]


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    monkeypatch.setattr("ka_ray.formats.compare.TIMED_CALLS", 3)


def image_of_noise(width=61, height=47):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def make_student(tmp_path, make_spec, randomised):
    """Return a function that saves a student of timm with a preprocessing, and returns it."""

    def make(network=f"timm/{ARCHITECTURE}", arguments=None, **preprocessing):
        spec = make_spec(network, {}, image_size=32, **(arguments or {}))
        spec = dataclasses.replace(spec, preprocessing={**spec.preprocessing, **preprocessing})
        student = randomised(Student(spec))
        save_student(student, tmp_path / "run")
        return student

    return make


CASES = {
    "squash": {},
    "shorter side, bicubic": {"resize": "shorter", "size": 36, "interpolation": "bicubic"},
    "padded": {"resize": "longest"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_folder_of_timm_has_the_scores_and_pixels_of_the_student(tmp_path, make_student, case):
    student = make_student(**CASES[case])
    ka_ray.export(tmp_path / "run", "timm", tmp_path / "pets")
    network = timm.create_model(f"local-dir:{tmp_path / 'pets'}", pretrained=True).eval()
    assert network.pretrained_cfg["label_names"] == CLASSES
    settings = timm.data.resolve_data_config({}, model=network)
    transform = timm.data.create_transform(**settings, is_training=False)
    assert_scores_of(student, network(transform(image_of_noise())[None]))
    assert_teacher(student, tmp_path / "pets")


def assert_scores_of(student, found):
    pixels = torch.from_numpy(student.spec.view.apply(image_of_noise()))[None]
    with torch.no_grad():
        expected = student(pixels)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def assert_teacher(student, folder):
    """Check that a folder is a teacher in one line, with the classes and the scores of the student."""
    config = describe_teacher(TeacherConfig.model_validate(str(folder)))[0]
    assert list(config.classes) == CLASSES
    view = view_of(config.preprocessing.resolve(size=64, resize="crop"))
    pixels = torch.from_numpy(view.apply(image_of_noise()))[None]
    assert_scores_of(student, load_teacher(config).scores(pixels))


def test_a_folder_of_transformers_has_the_scores_and_pixels_of_the_student(tmp_path, make_student):
    student = make_student(**CASES["shorter side, bicubic"])
    result = ka_ray.export(tmp_path / "run", "huggingface", tmp_path / "pets")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "pets").eval()
    assert model.config.id2label == dict(enumerate(CLASSES))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "pets")
    inputs = processor(image_of_noise(), return_tensors="pt")
    assert_scores_of(student, model(**inputs).logits)
    assert_teacher(student, tmp_path / "pets")
    assert sorted(result.files) == ["config.json", "model.safetensors"]


def test_arguments_of_a_network_travel_along(tmp_path, make_student):
    vit = {
        "model_name": "vit_tiny_patch16_224",
        "img_size": 32,
        "patch_size": 8,
        "depth": 1,
        "num_classes": 4,
    }
    student = make_student("timm:create_model", vit)
    for format in ("timm", "huggingface"):
        ka_ray.export(tmp_path / "run", format, tmp_path / format)
    assert_teacher(student, tmp_path / "huggingface")
    network = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    assert len(network.blocks) == 1


@pytest.mark.parametrize("format", ["timm", "huggingface"])
@pytest.mark.parametrize(
    ("preprocessing", "message"),
    [
        ({"channel_order": "bgr"}, "no words for the student's preprocessing .channel_order: bgr"),
        ({"resize": "shorter", "size": 36, "round_crop": "down"}, "round_crop: down"),
        ({"antialias": False}, "antialias: False"),
    ],
)
def test_pixels_that_timm_cannot_describe_are_refused(tmp_path, make_student, format, preprocessing, message):
    make_student(**preprocessing)
    with pytest.raises(InputError, match=message):
        ka_ray.export(tmp_path / "run", format, tmp_path / "pets")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_networks_that_timm_does_not_build_are_refused_by_name(tmp_path, make_spec):
    save_student(Student(make_spec("plain", {"conv1": 4})), tmp_path / "run")
    with pytest.raises(InputError, match="the student's network is plain, and such a folder can only hold"):
        ka_ray.export(tmp_path / "run", "huggingface", tmp_path / "pets")
    spec = make_spec("timm/test_resnet", {}, image_size=32)
    halved = {group.name: max(2, group.width // 2) for group in spec.width_groups}
    save_student(Student(dataclasses.replace(spec, layer_widths=halved)), tmp_path / "halved")
    with pytest.raises(InputError, match="other widths than timm's test_resnet"):
        ka_ray.export(tmp_path / "halved", "timm", tmp_path / "pets")


def test_the_crop_share_gives_the_resized_side_as_timm_computes_it():
    for size in range(4, 600):
        for crop in (4, 7, 32, 224, 288, size):
            assert math.floor(crop / _find_crop_share(crop, size)) == size
