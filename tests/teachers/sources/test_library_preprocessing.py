"""Test that images get the pixels of timm, transformers and torchvision, by the libraries' own code."""

import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config

from ka_ray.config import Preprocessing
from ka_ray.errors import InputError
from ka_ray.images.views import view_of
from ka_ray.teachers import Preprocess
from ka_ray.teachers.sources.library_preprocessing import (
    check_equal,
    preprocessing_of_timm,
    preprocessing_of_torchvision,
    preprocessing_of_transformers,
)

SIDES = (33, 224, 301, 500)
SIZES = [(width, height) for width in SIDES for height in SIDES]


def images():
    for number, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield Image.fromarray(pixels)


def through_ours(found: dict, image: Image.Image) -> np.ndarray:
    """What a teacher's first layer gets of an image."""
    preprocessing = Preprocessing.model_validate(found).resolve(size=224, resize="crop")
    pixels = torch.from_numpy(view_of(preprocessing).apply(image))
    return Preprocess(preprocessing)(pixels[None])[0].numpy()


TIMM_MODELS = [
    "resnet18.a1_in1k",
    "tf_efficientnet_lite0.in1k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "convnext_atto.d2_in1k",
    "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "mobilenetv3_small_050.lamb_in1k",
    "vit_base_patch16_siglip_224.webli",
]


@pytest.mark.parametrize("model", TIMM_MODELS)
def test_images_equal_those_of_timm(model):
    settings = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(model).to_dict())
    found, transform = preprocessing_of_timm(settings), create_transform(**settings, is_training=False)
    for image in images():
        np.testing.assert_allclose(through_ours(found, image), transform(image).numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("resnet18", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2"),
        ("efficientnet_b0", "IMAGENET1K_V1"),
        ("swin_v2_t", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1"),
    ],
)
def test_images_equal_those_of_torchvision(model, weights):
    member = torchvision.models.get_model_weights(model)[weights]
    found, transform = preprocessing_of_torchvision(member), member.transforms()
    for image in images():
        np.testing.assert_allclose(through_ours(found, image), transform(image).numpy(), rtol=0, atol=1e-6)


PROCESSORS = {
    "vit": ("ViT", {}),
    "vit with another mean": ("ViT", {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}),
    "vit, not normalised": ("ViT", {"do_normalize": False}),
    "vit in 0 ... 255": ("ViT", {"do_rescale": False, "do_normalize": False}),
    "vit without resizing": ("ViT", {"do_resize": False, "size": {"height": 301, "width": 301}}),
    "deit": ("DeiT", {}),
    "beit": ("Beit", {}),
    "clip": ("CLIP", {}),
    "bit": ("Bit", {}),
    "small convnext": ("ConvNext", {"size": {"shortest_edge": 224}}),
    "large convnext": ("ConvNext", {"size": {"shortest_edge": 384}}),
    "efficientnet": ("EfficientNet", {"size": {"height": 224, "width": 224}}),
    "efficientnet with an offset": ("EfficientNet", {"rescale_offset": True, "rescale_factor": 1 / 127.5}),
    "levit": ("Levit", {}),
    "mobilenet": ("MobileNetV2", {}),
    "mobilevit, with padding": ("MobileViT", {}),
    "poolformer": ("PoolFormer", {}),
    "siglip": ("Siglip", {}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_images_equal_those_of_transformers(kind):
    name, settings = PROCESSORS[kind]
    processor = getattr(transformers, f"{name}ImageProcessorPil")(**settings)
    found = preprocessing_of_transformers(processor.to_dict())
    for image in images():
        if found["resize"] == "none" and image.size != (301, 301):
            continue
        theirs = processor(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(through_ours(found, image), theirs, rtol=1e-6, atol=1e-6)


VIT = {"image_processor_type": "ViTImageProcessor"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (transformers.PerceiverImageProcessorPil().to_dict(), "PerceiverImageProcessorPil .* cannot express"),
        ({"image_processor_type": "NoSuchProcessor"}, "image processor NoSuchProcessor in preprocessor_conf"),
        ({**VIT, "size": None}, "image processor ViTImageProcessor"),
        ({**VIT, "resample": 99}, "image processor ViTImageProcessor"),
        ({**VIT, "image_mean": "x"}, "image processor ViTImageProcessor"),
        ({**VIT, "size": {"height": 64, "width": 96}}, "must be square"),
        ({"image_processor_type": "X", "auto_map": {"AutoImageProcessor": "a--b.X"}}, "image processor X"),
        ({}, "image processor None"),
    ],
)
def test_a_processor_that_cannot_be_used_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        preprocessing_of_transformers(settings)


def test_a_timm_size_that_is_not_square_is_refused():
    settings = resolve_data_config({"input_size": (3, 224, 192)}, pretrained_cfg={"mean": (0.5,) * 3})
    with pytest.raises(InputError, match="input_size"):
        preprocessing_of_timm(settings)


def test_a_transform_of_other_pixels_is_noticed():
    found = {"preset": "torchvision"}
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    check_equal(found, lambda image: transform(image).numpy(), "torchvision")
    with pytest.raises(InputError, match="the shifted one does something that preprocessing cannot express"):
        check_equal(found, lambda image: transform(image).numpy() + 1e-3, "the shifted one")
