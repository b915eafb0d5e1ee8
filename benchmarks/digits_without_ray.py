"""What Ray, parallel workers and MLflow cost the demo: the same work in one bare process, in the same run.

    .venv/bin/python benchmarks/digits_without_ray.py

Prints the seconds of both and their ratio. The bare loop calls the same plain functions below
`ka_ray/distributed`; it starts no worker, streams nothing and tracks nothing.
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
from ka_ray.runs.teachers import with_checkpoint
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import StageInputs, load_stage
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.student import Student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher

DIGITS = Path(__file__).parents[1] / "jobs" / "configs" / "digits.yaml"


def decode_all(images: ImageSet) -> dict[str, np.ndarray]:
    def unreadable(image_id: int, name: str) -> None:
        raise ValueError(name)

    reader = images.source.read
    parts = [
        part
        for chunk in images.source.chunks
        for part in read_chunk(images.config, reader, chunk, images.ids, None, unreadable)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def store(folder: Path, columns: dict[str, np.ndarray]) -> None:
    create_shard_folder(folder)
    write_shard(folder, columns)
    mark_folder_finished(folder, {})


def plain_digits(folder: Path) -> float:
    """Do the demo's work in this process; give the student's union accuracy."""
    config, cpu = Config.load(DIGITS), torch.device("cpu")
    learned_from, judged_on = (decode_all(images) for images in split_images(config))
    store(folder / "teachers" / "images", learned_from)
    for teacher in config.teachers:
        train_teacher(
            teacher, folder / "teachers/images", folder / "teachers", config.seed, cpu, lambda _: None
        )
    taught = tuple(
        with_checkpoint(teacher, teacher_checkpoint_path(folder / "teachers", teacher.name))
        for teacher in config.teachers
    )
    config = config.model_copy(update={"teachers": taught})
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    plan = make_plan(config, teachers)

    columns = dict(learned_from)
    for teacher in teachers:
        features, own = teacher.features(torch.from_numpy(columns["image"]), plan.paths[teacher.name])
        columns |= {feature_column(tap, teacher.name): f.half().numpy() for tap, f in features.items()}
        columns[feature_column(SCORES, teacher.name)] = own.numpy()
    store(folder / FEATURES, stack_columns(columns, list(plan.shapes), list(plan.paths)))
    run_stages(StageInputs(config, plan, folder, folder, cpu, lambda _: None))

    student = Student(plan.spec).eval()
    load_stage(folder, "joint", student)
    pixels = torch.from_numpy(judged_on["image"])
    with torch.inference_mode():
        said = student(pixels).numpy()
        own = [teacher.scores(pixels) for teacher in teachers]
    index = {name: i for i, name in enumerate(plan.spec.classes)}
    targets = np.array([index[label] for label in judged_on["label"]])
    ensemble = plan.label_sets.amalgamate(torch.cat(own, dim=1)).numpy()
    per_class = [plan.label_sets.columns(name) for name in plan.paths]
    counts = count_batch(targets, said, ensemble, [scores.numpy() for scores in own], per_class)
    union: float = compute_accuracies(counts, list(plan.paths))["union"]
    return union


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        union = plain_digits(Path(scratch) / "plain")
        plain_s = time.perf_counter() - began
        began = time.perf_counter()
        command = [sys.executable, "-m", "ka_ray.cli", "demo", "--output", f"{scratch}/ray"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ray_s = time.perf_counter() - began
        report = Report.load(Path(scratch) / "ray")
    print(f"bare single process: {plain_s:.1f} s, union {union:.3f}")
    print(f"ka-ray demo:         {ray_s:.1f} s, union {report.accuracy.union:.3f}")
    for stage, speed in report.stages.items():
        print(f"  {stage:<9} {speed.seconds:6.1f} s")
    print(f"ratio: {ray_s / plain_s:.1f}")


if __name__ == "__main__":
    main()
