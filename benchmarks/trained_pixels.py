"""Find out by its batch norms which pixels a network was trained on, and what wrong ones cost.

    .venv/bin/python benchmarks/trained_pixels.py [--pair NAME] [--output DIR] [--data DIR] [--photos FOLDER]

Teachers are those of benchmarks/finetuned_pair.py, trained at 96 pixels with mean and standard deviation .5,
and are trained first unless --output holds them. Each gets its test images in several ways, and 16 images of
all classes without labels. Prints its accuracy, the misfit in nats, and which pixels a run would name
instead. With --photos, a folder of ImageNet photos, also the misfit of the network that they were fine-tuned
from, which was trained at 224 pixels.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetuned_pair import PAIRS, describe_images, save_animals, save_imagenet_weights, train_teachers

from ka_ray.config import Config, FolderImages, Preprocessing, TeacherConfig
from ka_ray.config.preprocessing import IMAGENET
from ka_ray.images import open_source, read_chunk
from ka_ray.images.split import ImageSet, read_sample, split_images
from ka_ray.images.views import IMAGE, view_of
from ka_ray.runs.pixel_checks import Fit, describe_changes, find_better
from ka_ray.teachers import Teacher, load_teacher
from ka_ray.teachers.trained_pixels import measure_misfit

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
PIXELS: Mapping[str, dict[str, Any]] = {
    "96 pixels, mean and std .5": {"size": 96, **HALF},
    "128 pixels": {"size": 128, **HALF},
    "160 pixels": {"size": 160, **HALF},
    "224 pixels": {"size": 224, **HALF},
    "64 pixels": {"size": 64, **HALF},
    "mean and std of ImageNet": {"size": 96, **HALF, **IMAGENET},
    "mean 0, std 1": {"size": 96, **HALF, "mean": [0.0] * 3, "std": [1.0] * 3},
    "preset torchvision: crop 224 of 256, those of ImageNet": {"preset": "torchvision"},
}


def measure_accuracy(teacher: Teacher, images: ImageSet, pixels: Preprocessing) -> float:
    """Return the accuracy of a teacher among its own classes."""
    right = total = 0
    views, classes = {IMAGE: view_of(pixels)}, list(teacher.classes)
    for chunk in images.source.chunks:
        ids = images.ids[(images.ids >= chunk.first_id) & (images.ids < chunk.first_id + chunk.num_images)]
        for part in read_chunk(images.config, images.source.read, chunk, ids, None, print, views):
            own = np.isin(part["label"], classes)
            best = teacher.scores(torch.from_numpy(part[IMAGE][own])).argmax(dim=1).tolist()
            right += sum(classes[i] == label for i, label in zip(best, part["label"][own], strict=True))
            total += len(best)
    return right / total


def measure(section: dict[str, Any], images: ImageSet, testing: ImageSet | None) -> None:
    """Print accuracy, misfit and advice of a teacher with each kind of pixels."""
    for name, keys in PIXELS.items():
        config = TeacherConfig.model_validate(section | {"preprocessing": keys})
        teacher, pixels = load_teacher(config), config.preprocessing.resolve(images.config.size, "crop")
        sample = read_sample(images.with_views({IMAGE: view_of(pixels)}))
        assert sample is not None
        misfit = measure_misfit(teacher.network, teacher.preprocess, torch.from_numpy(sample[IMAGE]))
        assert misfit is not None
        given = Fit(pixels, misfit)
        best = find_better(teacher, given, images)
        advice = "" if best is None else describe_changes(given, best)
        accuracy = "" if testing is None else f"{measure_accuracy(teacher, testing, pixels):.3f}"
        print(f"| {section['name']} | {name} | {accuracy} | {misfit:.3f} | {advice} |", flush=True)


def main() -> None:
    """Measure both teachers of a pair."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pair", choices=sorted(PAIRS), default="halves")
    parser.add_argument("--output", type=Path, default=Path("runs/finetuned_pair"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--photos", type=Path, help="folder of ImageNet photos")
    arguments = parser.parse_args()
    folder, data = arguments.output.resolve() / arguments.pair, arguments.data.resolve()
    weights = arguments.output.resolve() / "imagenet.pt"
    if not weights.exists():
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_imagenet_weights(weights)
    if arguments.pair == "animals_and_signs" and not folder.exists():
        folder.mkdir()
        save_animals(data, folder)
    described = describe_images(arguments.pair, data, folder)
    teachers = train_teachers(arguments.pair, 0, described, weights, folder / "seed_0" / "teachers")
    config = Config.model_validate({"name": "trained_pixels", "teachers": teachers, **described})
    training, testing = split_images(config)
    print("| teacher | pixels | accuracy | misfit | a run names |\n|---|---|--:|--:|---|")
    for section in teachers:
        measure(section, training, testing)
    if arguments.photos is not None:
        section = {"name": "imagenet", "network": "timm/tf_efficientnet_lite0", "checkpoint": str(weights)}
        photos = FolderImages(source="folder", path=arguments.photos, labelled=False, size=224)
        source = open_source(photos)
        images = ImageSet(photos, source, np.arange(source.num_images))
        measure(section | {"classes": [f"class {i}" for i in range(1000)]}, images, None)


if __name__ == "__main__":
    main()
