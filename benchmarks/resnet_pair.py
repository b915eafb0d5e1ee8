"""Merge two ResNet-20s of different origin in closed form: no label and no gradient step for the student.

    .venv/bin/python benchmarks/resnet_pair.py [--output DIR] [--images DIR] [--widths FACTOR ...]
                                               [--joint IMAGES] [--vary ...]

Trains He's ResNet-20 for CIFAR on each half of CIFAR-10 from different seeds (25,000 labelled images each),
then solves one ResNet-20 over all ten classes, layer by layer, from unlabelled training images. Prints the
accuracy of the ensemble and of the student on the 10,000 test images. With --widths, students of other widths
are solved: multiples of the teachers' own. With --joint, `ka-ray compare` also learns jointly, from the exact
start and from the average of the aligned teachers. With --vary, settings are compared instead, on training
images that the students have not seen. Teachers that were trained before are used again. The data are Parquet
files, as in jobs/configs/cifar10_halves.yaml.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ka_ray import Config, compare
from ka_ray.amalgamation import LabelSets
from ka_ray.config.module_folders import add_module_folders
from ka_ray.config.student import STUDENT
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.images import read_chunk
from ka_ray.images.split import ImageSet, split_images
from ka_ray.runs.teachers import with_checkpoint
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.student.block_solver import LayerError, solve_student
from ka_ray.student.layer_widths import scale_widths, stacked_widths
from ka_ray.student.resized import find_width_groups, resize_network
from ka_ray.teachers import build_network, load_teacher
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
        "epochs": 6,
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
        train_teacher(teacher, images, config.output_dir, config.seed, torch.device("cpu"), report)
        print(f"teacher {teacher.name}: {teacher_checkpoint_path(config.output_dir, teacher.name)}")


def read_pixels(folder: Path, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Read stored images and the indices of their classes; with a limit, only so many, chosen at random."""
    store = Store(folder)
    rows = np.random.default_rng(0).permutation(len(store))[:limit]
    columns = store.gather(["image", "label"], rows)
    labels = [CLASSES.index(label) for label in columns["label"]]
    return torch.from_numpy(columns["image"]), torch.tensor(labels)


@torch.no_grad()
def solve_and_judge(config: Config, num_images: int, factor: float) -> None:
    """Solve a student of some width from unlabelled images, and print accuracies on the test images."""
    folder, testing = config.output_dir, split_images(config)[1]
    teachers = [
        load_teacher(with_checkpoint(teacher, teacher_checkpoint_path(folder, teacher.name)))
        for teacher in config.teachers
    ]
    label_sets = LabelSets({teacher.name: teacher.classes for teacher in teachers})
    pixels, _ = read_pixels(folder / "train_images", num_images)
    names = [*label_sets.by_teacher, STUDENT]
    batches = [dict.fromkeys(names, part) for part in pixels.split(250)]
    network = build_network(config.student.network, config.student.arguments, len(CLASSES))
    began, preprocess = time.perf_counter(), teachers[0].preprocess
    example = preprocess(pixels[:2])
    groups = find_width_groups(network, example)
    widths = scale_widths(groups, factor, stacked_widths(groups, [teacher.network for teacher in teachers]))
    resize_network(network, groups, widths, example)
    student, errors = solve_student(network, preprocess, teachers, label_sets, batches, report=print_error)
    print(f"{len(errors)} layers from {num_images} images in {time.perf_counter() - began:.0f} s")
    pixels, labels = read_pixels(store_images(folder / "test_images", testing))
    correct, agreeing = {"ensemble": 0, "student": 0}, 0
    for part, wanted in zip(pixels.split(500), labels.split(500), strict=True):
        ensemble = label_sets.amalgamate(torch.cat([teacher.scores(part) for teacher in teachers], dim=1))
        found = {"ensemble": ensemble.argmax(dim=1), "student": student(preprocess(part)).argmax(dim=1)}
        for name, classes in found.items():
            correct[name] += int((classes == wanted).sum())
        agreeing += int((found["ensemble"] == found["student"]).sum())
    accuracy = {name: count / len(labels) for name, count in correct.items()}
    parameters = sum(p.numel() for p in student.parameters())
    print(
        f"width {factor:g}, {parameters:,} parameters: ensemble {accuracy['ensemble']:.4f}, "
        f"student {accuracy['student']:.4f}, ratio {accuracy['student'] / accuracy['ensemble']:.3f}, "
        f"agreement {agreeing / len(labels):.4f}",
        flush=True,
    )


def print_error(error: LayerError, number: int, total: int) -> None:
    """Print how well a layer was solved."""
    print(f"{number:>2} of {total} {' + '.join(error.layers):<36} {error.relative_error:.3f}", flush=True)


def compare_starts(config: Config, num_images: int, vary: list[str]) -> None:
    """Learn students jointly from both starts, and print the table; with `vary`, compare settings."""
    add_module_folders(Path(__file__))  # Ray's workers import the network from here
    teachers = [
        with_checkpoint(teacher, teacher_checkpoint_path(config.output_dir, teacher.name))
        for teacher in config.teachers
    ]
    images, evaluation = config.images.model_copy(update={"limit": num_images}), config.evaluation
    if vary:
        images = images.model_copy(update={"files": "train-0000[0-3].parquet"})
        judged_on = config.images.model_copy(update={"files": "train-00004.parquet"})
        evaluation = evaluation.model_copy(update={"images": judged_on})
    folder = config.output_dir / ("settings" if vary else "compared")
    joint = config.model_copy(
        update={
            "teachers": tuple(teachers),
            "images": images,
            "evaluation": evaluation,
            "output": folder,
        }
    )
    methods = ["start+joint"] if vary else ["start", "start+joint"]
    print(compare(joint, methods, 1, vary or ["student.start=exact,average"]).to_markdown())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/resnet_pair"))
    parser.add_argument("--images", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--num-images", type=int, default=2000, help="images that the student is solved from")
    parser.add_argument("--teachers-only", action="store_true")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0], help="multiples of the own width")
    parser.add_argument("--joint", type=int, metavar="IMAGES", help="learn jointly from so many images, too")
    parser.add_argument(
        "--vary", metavar="KEY=V1,V2", action="append", default=[], help="settings, with --joint"
    )
    arguments = parser.parse_args()
    config = Config.model_validate(describe_run(arguments.images, arguments.output))
    train_teachers(config)
    for factor in [] if arguments.teachers_only or arguments.vary else arguments.widths:
        solve_and_judge(config, arguments.num_images, factor)
    if arguments.joint:
        compare_starts(config, arguments.joint, arguments.vary)
