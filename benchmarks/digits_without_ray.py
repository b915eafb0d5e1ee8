"""Measure how much time Ray, parallel workers and MLflow add to the demo.

    .venv/bin/python benchmarks/digits_without_ray.py

Does the work of the demo once in this process, without Ray, and once with `ka-ray demo`. Prints the seconds
of both and their ratio. Without Ray, the same functions of `ka_ray` are called directly: no worker is
started, nothing is streamed between processes, and nothing is tracked.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ka_ray.config import Config
from ka_ray.features.stack import SCORES, feature_column, stack_columns
from ka_ray.features.store import FEATURES, create_shard_folder, mark_folder_finished, write_shard
from ka_ray.images import read_chunk
from ka_ray.images.split import ImageSet, split_images
from ka_ray.metrics import compute_accuracies, count_batch
from ka_ray.reports.report import Report
from ka_ray.runs.joint_defaults import choose_joint_defaults
from ka_ray.runs.teachers import with_checkpoint
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import StageInputs, load_stage
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.student import Student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import Teacher, load_teacher

DIGITS = Path(__file__).parents[1] / "jobs" / "configs" / "digits.yaml"


def decode_all(images: ImageSet) -> dict[str, np.ndarray]:
    """Decode all images: column -> one row per image."""

    def fail(image_id: int, name: str) -> None:
        raise ValueError(f"image {name} cannot be read")

    reader = images.source.read
    parts = [
        part
        for chunk in images.source.chunks
        for part in read_chunk(images.config, reader, chunk, images.ids, None, fail)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def store_columns(folder: Path, columns: dict[str, np.ndarray]) -> None:
    """Write columns into a folder as one shard, as the extraction does."""
    create_shard_folder(folder)
    write_shard(folder, columns)
    mark_folder_finished(folder, {})


def run_without_ray(folder: Path) -> float:
    """Do the work of the demo in this process, and return the student's accuracy on all classes."""
    config, cpu = Config.load(DIGITS), torch.device("cpu")
    train_columns, test_columns = (decode_all(images) for images in split_images(config))
    store_columns(folder / "teachers" / "images", train_columns)
    # The demo trains its teachers, too, before it extracts features.
    for teacher in config.teachers:
        train_teacher(
            teacher, folder / "teachers/images", folder / "teachers", config.seed, cpu, lambda _: None
        )
    trained = tuple(
        with_checkpoint(teacher, teacher_checkpoint_path(folder / "teachers", teacher.name))
        for teacher in config.teachers
    )
    config = config.model_copy(update={"teachers": trained})
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    plan = make_plan(config, teachers)
    config = choose_joint_defaults(config, plan, len(train_columns["image"]))  # as many epochs as the demo

    # Extraction: the features of the teachers as float16, as in the shards of a run.
    columns = dict(train_columns)
    for teacher in teachers:
        features, scores = teacher.features(torch.from_numpy(columns["image"]), plan.paths[teacher.name])
        columns |= {feature_column(tap, teacher.name): f.half().numpy() for tap, f in features.items()}
        columns[feature_column(SCORES, teacher.name)] = scores.numpy()
    store_columns(folder / FEATURES, stack_columns(columns, list(plan.shapes), list(plan.paths)))
    run_stages(StageInputs(config, plan, folder, folder, cpu, lambda _: None))
    return _evaluate(folder, plan, teachers, test_columns)


def _evaluate(
    folder: Path, plan: Plan, teachers: list[Teacher], test_columns: dict[str, np.ndarray]
) -> float:
    """Return the student's accuracy on all classes of the test images."""
    student = Student(plan.spec).eval()
    load_stage(folder, "joint", student)
    pixels = torch.from_numpy(test_columns["image"])
    with torch.inference_mode():
        student_scores = student(pixels).numpy()
        teacher_scores = [teacher.scores(pixels) for teacher in teachers]
    index = {name: i for i, name in enumerate(plan.spec.classes)}
    targets = np.array([index[label] for label in test_columns["label"]])
    ensemble = plan.label_sets.amalgamate(torch.cat(teacher_scores, dim=1)).numpy()
    columns_per_teacher = [plan.label_sets.columns(name) for name in plan.paths]
    own_scores = [scores.numpy() for scores in teacher_scores]
    counts = count_batch(targets, student_scores, ensemble, own_scores, columns_per_teacher)
    union: float = compute_accuracies(counts, list(plan.paths))["union"]
    return union


def main() -> None:
    """Do the work without Ray and with `ka-ray demo`, and print the seconds of both."""
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        union = run_without_ray(Path(scratch) / "without_ray")
        without_ray_s = time.perf_counter() - began
        began = time.perf_counter()
        # In a new process, so that the start of Python and Ray counts, as it does for a user.
        command = [sys.executable, "-m", "ka_ray.cli", "demo", "--output", f"{scratch}/ray"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ray_s = time.perf_counter() - began
        report = Report.load(Path(scratch) / "ray")
    print(f"one process, no Ray: {without_ray_s:.1f} s, accuracy on all classes {union:.3f}")
    print(f"ka-ray demo:         {ray_s:.1f} s, accuracy on all classes {report.accuracy.union:.3f}")
    for stage, speed in report.stages.items():
        print(f"  {stage:<9} {speed.seconds:6.1f} s")
    print(f"ratio of the times: {ray_s / without_ray_s:.1f}")


if __name__ == "__main__":
    main()
