"""Merge two ResNet-20s of different origin in closed form: no label and no gradient step for the student.

    .venv/bin/python benchmarks/resnet_pair.py [--output DIR] [--images DIR] [--teachers-only]

Trains He's ResNet-20 for CIFAR on each half of CIFAR-10 from different seeds (25,000 labelled images each),
then solves one ResNet-20 over all ten classes, layer by layer, from unlabelled training images. Prints the
accuracy of the ensemble and of the student on the 10,000 test images. Teachers that were trained before are
used again. The data are Parquet files, as in jobs/configs/cifar10_halves.yaml.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ka_ray import Config
from ka_ray.features.store import create_shard_folder, mark_folder_finished, write_shard
from ka_ray.images import read_chunk
from ka_ray.images.split import ImageSet, split_images
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.training.fit import Progress

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def describe_run(images: Path, output: Path) -> dict[str, Any]:
    """Return the config of the run, as its YAML file would say it."""
    source = {
        "source": "parquet",
        "path": str(images),
        "label_column": "label",
        "classes": list(CLASSES),
        "size": 32,
    }
    training = {
        "epochs": 8,
        "batch_size": 128,
        "learning_rate": 0.005,
        "weight_decay": 0.05,
        "augment": {"flip": True, "shift": 4},
    }
    halves = {"a": CLASSES[:5], "b": CLASSES[5:]}
    teachers = [
        {
            "name": name,
            "classes": list(names),
            "network": "cifar_resnet:resnet20",
            "arguments": {"num_classes": len(names)},
            "preprocessing": {"preset": "cifar"},
            "training": training | {"seed": seed},
        }
        for seed, (name, names) in enumerate(halves.items(), start=1)
    ]
    return {
        "name": "resnet_pair",
        "output": str(output),
        "images": source | {"files": "train-*.parquet"},
        "evaluation": {"images": source | {"files": "test-*.parquet"}},
        "teachers": teachers,
        "student": {"network": "cifar_resnet:resnet20", "arguments": {"num_classes": len(CLASSES)}},
        "taps": {"early": "layer1.2.bn2", "middle": "layer2.2.bn2", "late": "layer3.2.bn2"},
        "tracking": {"backend": "none"},
    }


def decode_images(images: ImageSet) -> dict[str, np.ndarray]:
    """Decode all images: column -> one row per image."""

    def fail(image_id: int, name: str) -> None:
        raise ValueError(f"image {name} cannot be read")

    parts = [
        part
        for chunk in images.source.chunks
        for part in read_chunk(images.config, images.source.read, chunk, images.ids, None, fail)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def store_images(folder: Path, images: ImageSet) -> Path:
    """Store decoded images in a folder, unless it has them, and return the folder."""
    if not folder.exists():
        create_shard_folder(folder)
        write_shard(folder, decode_images(images))
        mark_folder_finished(folder, {})
    return folder


def train_teachers(config: Config) -> None:
    """Train the teachers that have no weights yet."""
    images = store_images(config.output_dir / "train_images", split_images(config)[0])

    def report(progress: Progress) -> None:
        if progress.epoch_ended:
            print(f"{progress.stage} epoch {progress.epoch} of {progress.epochs}, {progress.seconds:.0f} s, "
                  f"loss {progress.losses['loss']:.3f}", flush=True)  # fmt: skip

    for teacher in config.teachers:
        with torch.autocast("cpu", torch.bfloat16):  # half the time of float32
            train_teacher(teacher, images, config.output_dir, config.seed, torch.device("cpu"), report)
        print(f"teacher {teacher.name}: {teacher_checkpoint_path(config.output_dir, teacher.name)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/resnet_pair"))
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--teachers-only", action="store_true")
    arguments = parser.parse_args()
    train_teachers(Config.model_validate(describe_run(arguments.images, arguments.output)))
