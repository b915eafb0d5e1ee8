"""Every network gets the pixels of its own pipeline: views equal the transforms of torchvision and timm."""

import itertools

import numpy as np
import pytest
import timm.data
import torch
import torchvision.transforms as tv
import yaml
from PIL import Image
from pydantic import ValidationError

from ka_ray.config import FolderImages, Preprocessing
from ka_ray.config.preprocessing import IMAGENET
from ka_ray.images.views import IMAGE, NetworkViews, View, make_view
from ka_ray.teachers.preprocess import Preprocess

IMAGES = FolderImages(source="folder", path="/", size=20)
SIDES = (1, 7, 19, 20, 21, 30, 41, 64, 99, 100, 333)
SIZES = list(itertools.product(SIDES, SIDES))
MODES = {
    "nearest": tv.InterpolationMode.NEAREST,
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
    "lanczos": tv.InterpolationMode.LANCZOS,
}


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def assert_same_pixels(preprocessing: Preprocessing, transform, sizes=SIZES, mode: str = "RGB") -> None:
    """Check the equality of the pixels with those of a transform that ends in ``PILToTensor``."""
    view = make_view(preprocessing, IMAGES)
    for width, height in sizes:
        image = random_image(width, height, mode)
        pixels, expected = torch.from_numpy(view.apply(image)), transform(image)
        assert torch.equal(pixels, expected), (width, height)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(("size", "crop"), [(16, 16), (23, 16), (20, 17), (16, 24)])
def test_shorter_equals_torchvisions_resize_and_center_crop(interpolation, size, crop):
    preprocessing = Preprocessing(resize="shorter", size=size, crop=crop, interpolation=interpolation)
    transform = tv.Compose([tv.Resize(size, MODES[interpolation]), tv.CenterCrop(crop), tv.PILToTensor()])
    # From one row or column of pixels, torchvision makes images of thousands of pixels.
    assert_same_pixels(preprocessing, transform, [size for size in SIZES if min(size) > 1 or max(size) < 100])


@pytest.mark.parametrize("interpolation", MODES)
def test_squash_equals_torchvisions_resize_to_both_sides(interpolation):
    preprocessing = Preprocessing(resize="squash", size=23, crop=20, interpolation=interpolation)
    transform = tv.Compose([tv.Resize((23, 23), MODES[interpolation]), tv.CenterCrop(20), tv.PILToTensor()])
    assert_same_pixels(preprocessing, transform)


@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_grey_networks_get_torchvisions_grey_pixels(resize):
    preprocessing = Preprocessing(resize=resize, size=16, channels=1, mean=[0.5], std=[0.5])
    size = 16 if resize == "shorter" else (16, 16)
    transform = tv.Compose([tv.Grayscale(), tv.Resize(size), tv.CenterCrop(16), tv.PILToTensor()])
    sizes = [(20, 30), (31, 20), (16, 16)]
    assert_same_pixels(preprocessing, transform, sizes)
    assert_same_pixels(preprocessing, transform, sizes, mode="L")


def test_a_view_of_the_size_of_all_images_changes_no_pixel():
    preprocessing = Preprocessing(resize="none", size=32)
    assert_same_pixels(preprocessing, tv.PILToTensor(), [(32, 32)])
    view = make_view(preprocessing, IMAGES)
    with pytest.raises(ValueError, match=r"31 x 32 pixels; preprocessing\.resize: none expects 32 x 32"):
        view.apply(random_image(31, 32))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_antialias_pixels_equal_torchvisions_resize_of_tensors(interpolation):
    preprocessing = Preprocessing(
        resize="shorter", size=16, crop=16, interpolation=interpolation, antialias=False
    )
    transform = tv.Compose(
        [tv.PILToTensor(), tv.Resize(16, MODES[interpolation], antialias=False), tv.CenterCrop(16)]
    )
    assert_same_pixels(preprocessing, transform, [(20, 30), (31, 20), (64, 99), (333, 41)])


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("input_size", "crop_pct"), [(16, 0.875), (20, 0.9), (24, 1.0), (23, 0.77)])
def test_pixels_and_network_input_equal_timms_transform(crop_mode, interpolation, input_size, crop_pct):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    arguments = {
        "input_size": (3, input_size, input_size),
        "is_training": False,
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "mean": mean,
        "std": std,
    }
    preprocessing = Preprocessing(
        preset="timm",
        resize={"center": "shorter", "squash": "squash", "border": "longest"}[crop_mode],
        crop=input_size,
        crop_fraction=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
    )
    sizes = [(20, 30), (31, 20), (64, 99), (333, 41), (16, 16), (101, 7)]
    assert_same_pixels(preprocessing, timm.data.create_transform(**arguments, normalize=False), sizes)
    view, normalise = make_view(preprocessing, IMAGES), Preprocess(preprocessing)
    transform = timm.data.create_transform(**arguments)
    for width, height in sizes:
        image = random_image(width, height)
        network_input = normalise(torch.from_numpy(view.apply(image))[None])[0]
        torch.testing.assert_close(network_input, transform(image), rtol=0, atol=1e-6)


def test_the_preset_torchvision_is_the_transform_of_its_published_weights():
    from torchvision.transforms._presets import ImageClassification

    preprocessing = Preprocessing(preset="torchvision")
    view, normalise = make_view(preprocessing, IMAGES), Preprocess(preprocessing)
    transform = ImageClassification(crop_size=224)
    for size in [(333, 250), (250, 301), (224, 600)]:
        network_input = normalise(torch.from_numpy(view.apply(random_image(*size)))[None])[0]
        torch.testing.assert_close(network_input, transform(random_image(*size)), rtol=0, atol=1e-6)


def test_every_length_of_the_longer_side_is_resized_as_by_torchvision():
    preprocessing = Preprocessing(resize="shorter", size=32, crop=32)
    transform = tv.Compose([tv.Resize(32), tv.CenterCrop(32), tv.PILToTensor()])
    assert_same_pixels(preprocessing, transform, [(40, other) for other in range(41, 241)])


def test_channel_order_and_rescale_reach_the_network():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    caffe = Preprocessing(channel_order="bgr", rescale=1, mean=[103.9, 116.8, 123.7], std=[1, 1, 1])
    expected = images[:, [2, 1, 0]].float() - torch.tensor([103.9, 116.8, 123.7]).view(1, 3, 1, 1)
    torch.testing.assert_close(Preprocess(caffe)(images), expected)
    for preprocessing in (caffe, Preprocessing()):
        assert Preprocess(preprocessing).to(torch.float64)(images).dtype == torch.float64
    half = Preprocessing(rescale=1 / 127.5, mean=[1, 1, 1], std=[1, 1, 1])
    torch.testing.assert_close(Preprocess(half)(images), images.float() / 127.5 - 1)


def test_what_a_preprocessing_leaves_open_is_as_the_images_say():
    squashed = IMAGES.model_copy(update={"resize": "squash"})
    assert make_view(Preprocessing(), IMAGES) == View("shorter", 20, 20)
    assert make_view(Preprocessing(), squashed) == View("squash", 20, 20)
    assert make_view(Preprocessing(size=8), IMAGES) == View("shorter", 8, 8)
    assert make_view(Preprocessing(preset="timm"), squashed) == View("shorter", 256, 224, "bicubic")
    assert make_view(Preprocessing(preset="timm", size=288), IMAGES) == View("shorter", 288, 224, "bicubic")
    assert make_view(Preprocessing(preset="cifar"), IMAGES) == View("none", 32, 32)


@pytest.mark.parametrize("preset", ["torchvision", "timm", "huggingface", "cifar", None])
def test_a_dumped_and_a_resolved_preprocessing_give_the_same_view(preset):
    preprocessing = Preprocessing(preset=preset)
    dumped = yaml.safe_load(yaml.safe_dump(preprocessing.model_dump(mode="json")))
    assert Preprocessing.model_validate(dumped) == preprocessing
    resolved = Preprocessing.model_validate(preprocessing.resolve(20, "crop").model_dump(mode="json"))
    assert make_view(resolved, IMAGES.model_copy(update={"size": 5})) == make_view(preprocessing, IMAGES)


def test_networks_with_equal_views_share_a_column():
    small, large = View("shorter", 20, 20), View("shorter", 256, 224)
    views = NetworkViews(small, {"a": large, "b": small, "c": large})
    assert views.columns == {IMAGE: small, "image@1": large}
    assert views.teacher_columns == {"a": "image@1", "b": IMAGE, "c": "image@1"}
    assert views.other_columns == ("image@1",)
    assert NetworkViews(small, {"a": small}).other_columns == ()


def test_the_descriptive_network_shares_columns_and_its_own_comes_last():
    small, large, own = View("shorter", 20, 20), View("shorter", 256, 224), View("squash", 96, 96)
    views = NetworkViews(small, {"a": large}, own)
    assert views.columns == {IMAGE: small, "image@1": large, "image@2": own}
    assert views.read_columns == {"a": "image@1", "descriptive": "image@2"}
    assert views.teacher_columns == {"a": "image@1"}
    assert views.other_columns == ("image@1",)  # its images are not stored for training workers
    assert views.without_descriptive().columns == {IMAGE: small, "image@1": large}
    assert NetworkViews(small, {"a": large}, large).read_columns["descriptive"] == "image@1"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": [127.5] * 3}, r"mean: \[127.5, 127.5, 127.5\] does not fit pixels of 0 \.\.\. 1"),
        ({"mean": IMAGENET["mean"], "rescale": 1}, r"does not fit pixels of 0 \.\.\. 255"),
        ({"rescale": 1}, r"mean: .* does not fit pixels of 0 \.\.\. 255"),
        ({"std": [0, 1, 1]}, r"std: .*each must lie in"),
        ({"std": [58, 57, 57]}, r"std: .* does not fit pixels of 0 \.\.\. 1"),
        ({"channels": 1}, r"mean: .*; the network's number of channels is 1"),
        ({"mean": [0.5]}, r"mean: \[0.5\]; the network's number of channels is 3"),
        ({"size": 256, "crop": 224, "crop_fraction": 0.9}, "crop_fraction: give it or size"),
        ({"crop_fraction": 0.9}, "crop_fraction: needs crop"),
        ({"interpolation": "lanczos", "antialias": False}, "antialias: false is not possible"),
        ({"preset": "fastai"}, "preset"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Preprocessing.model_validate(keys)
