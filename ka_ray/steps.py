"""The steps of a run. Each is skipped where what it leaves in the output folder stands already."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ka_ray.config import Config, TeachConfig, TeacherConfig
from ka_ray.distributed.evaluate import Evaluation, evaluate_images
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.train import train_in_workers
from ka_ray.features.store import DONE, FEATURES, IMAGES, write_json
from ka_ray.figures import draw_all
from ka_ray.metrics import accuracies
from ka_ray.output import check_disk, in_gib, read_json
from ka_ray.plan import Plan
from ka_ray.report import Report, measure_size
from ka_ray.run import Run
from ka_ray.split import ImageSet, split_for_features
from ka_ray.student import Student, load_student, save_student
from ka_ray.teachers import load_teacher
from ka_ray.training.stages import STAGES, StageInputs, load_stage, run_stages, stage_file
from ka_ray.training.teaching import teach, teacher_checkpoint

TEACHERS = "teachers"
"""The folder of teachers trained in the run."""


def teach_missing(run: Run[Config], images: ImageSet) -> Run[Config]:
    """Train the teachers that come with ``training`` instead of a checkpoint.

    Returns:
        The run with every teacher's checkpoint in its config.
    """
    untaught = [teacher for teacher in run.config.teachers if teacher.training is not None]
    folder = run.folder / TEACHERS
    if any(not teacher_checkpoint(folder, teacher.name).exists() for teacher in untaught):
        teach_all(run, untaught, images, folder)
    taught = tuple(with_checkpoint(teacher, folder) for teacher in run.config.teachers)
    return dataclasses.replace(run, config=run.config.model_copy(update={"teachers": taught}))


def teach_all(
    run: Run[Config | TeachConfig], teachers: Sequence[TeacherConfig], images: ImageSet, folder: Path
) -> None:
    """Train teachers, one after the other, in one group of workers.

    Args:
        run: Of a student or of one teacher.
        teachers: With their ``training`` sections.
        images: Labelled.
        folder: Gets one folder a teacher, and the decoded images.
    """
    ray, seed, stored = run.config.ray, run.config.seed, folder / IMAGES
    if not (stored / DONE).exists():
        classes = frozenset(name for teacher in teachers for name in teacher.classes)
        row_bytes = 3 * images.config.size**2
        work = Extraction(images.config, images.source, images.ids, stored, row_bytes, classes)
        with run.display.images("read", len(images.ids)) as on_images:
            extract_features(work, [], run.config.extract, {}, None, on_images)

    def in_worker(device: torch.device, report: Any) -> None:
        for teacher in teachers:
            teach(teacher, stored, folder, seed, device, report)

    run.display.note(f"teaching {', '.join(t.name for t in teachers)}: starting {ray.workers} workers")
    train_in_workers(in_worker, ray, run.folder / "ray", run.report)


def with_checkpoint(teacher: TeacherConfig, folder: Path) -> TeacherConfig:
    """Point a teacher that was trained here at its checkpoint."""
    if teacher.training is None:
        return teacher
    return teacher.model_copy(
        update={"training": None, "checkpoint": teacher_checkpoint(folder, teacher.name)}
    )


def extract(run: Run[Config], plan: Plan, images: ImageSet) -> None:
    """Stream the images through the teachers: some keep all their features, the others their scores."""
    config = run.config
    kept, others = split_for_features(images, config.extract.images, config.seed)
    feature_row, score_row = plan.feature_bytes + plan.image_bytes, plan.image_bytes
    parts = [(FEATURES, kept, feature_row, plan.paths)]
    if len(others.ids):
        parts.append((IMAGES, others, score_row, {teacher: {} for teacher in plan.paths}))
    parts = [part for part in parts if not (run.folder / part[0] / DONE).exists()]
    needed = sum(len(part.ids) * row for _, part, row, _ in parts)
    check_disk(run.folder, needed)
    for name, part, row_bytes, paths in parts:
        run.display.note(
            f"extracting {'features and scores' if name == FEATURES else 'scores'}: {len(part.ids)} images x "
            f"{row_bytes / 1024:.1f} KiB = {in_gib(len(part.ids) * row_bytes)} into {run.folder / name}"
        )
        work = Extraction(part.config, part.source, part.ids, run.folder / name, row_bytes)
        with run.display.images("extract", len(part.ids)) as on_images:
            extract_features(work, config.teachers, config.extract, paths, plan.label_sets, on_images)


def extraction_summaries(folder: Path) -> list[dict[str, Any]]:
    """Read what the extraction's parts say of themselves."""
    return [read_json(folder / part / DONE) for part in (FEATURES, IMAGES) if (folder / part / DONE).exists()]


def learn(run: Run[Config], plan: Plan) -> None:
    """Train codes, layers and student in one group of workers; keep the student for use."""
    config, folder = run.config, run.folder
    missing = [stage for stage in STAGES if not stage_file(folder, stage).exists()]
    if missing:

        def in_worker(device: torch.device, report: Any) -> None:
            run_stages(StageInputs(config, plan, folder, device, report))

        run.display.note(f"learning {', '.join(missing)}: starting {config.ray.workers} workers")
        train_in_workers(in_worker, config.ray, folder / "ray", run.report)
    if not (folder / "student.json").exists():
        student = Student(plan.spec)
        load_stage(folder, "joint", student)
        save_student(student, folder)


def evaluate_student(run: Run[Config], plan: Plan, images: ImageSet) -> dict[str, Any]:
    """Judge the student beside the teachers; give accuracies, confusion and what the pass took."""
    path = stage_file(run.folder, "evaluate")
    if not path.exists():
        work = Evaluation(
            images=images.config,
            source=images.source,
            ids=images.ids,
            label_sets=plan.label_sets.by_teacher,
            teachers=run.config.teachers,
            student=run.folder,
            extract=run.config.extract,
        )
        with run.display.images("evaluate", len(images.ids)) as on_images:
            counts, summary = evaluate_images(work, on_images)
        accuracy = accuracies(counts, list(plan.label_sets.by_teacher))
        write_json(path, summary | {"accuracy": accuracy, "confusion": counts.student.tolist()})
    return read_json(path)


def publish(run: Run[Config], plan: Plan, evaluated: dict[str, Any]) -> Report:
    """Write the report and its figures, and hand all to the tracker."""
    folder, tracker = run.folder, run.tracker
    stages = {stage: read_json(stage_file(folder, stage)) for stage in STAGES}
    extraction = extraction_summaries(folder)
    report = Report.model_validate(
        {
            "name": run.config.name,
            "classes": list(plan.spec.classes),
            "accuracy": evaluated["accuracy"],
            "size": _sizes(run.config, folder),
            "codes": stages["codes"]["taps"],
            "layers": stages["layers"]["taps"],
            "stages": _speeds(stages, extraction, evaluated),
            "ray": dataclasses.asdict(run.cluster),
            "placements": [place for part in extraction for place in part["placements"]],
            "unreadable": [name for part in [*extraction, evaluated] for name in part["unreadable"]],
            "mlflow": {"tracking_uri": tracker.tracking_uri, "run_id": tracker.run_id},
        }
    )
    report.save(folder)
    histories = {stage: summary["history"] for stage, summary in stages.items()}
    confusion = np.array(evaluated["confusion"]) if report.accuracy.union is not None else None
    draw_all(report.model_dump(), histories, confusion, folder / "figures")
    tracker.log_metrics(_final_metrics(report))
    for name in ("report.json", "report.md", "figures"):
        tracker.log_artifact(folder / name)
    tracker.log_student(load_student(folder))
    return report


def _sizes(config: Config, folder: Path) -> dict[str, Any]:
    image = torch.zeros(1, 3, config.images.size, config.images.size)
    per_teacher = {}
    for teacher in map(load_teacher, config.teachers):
        per_teacher[teacher.name] = measure_size(teacher.network, teacher.preprocess(image)).model_dump()
    total = {key: sum(size[key] for size in per_teacher.values()) for key in ("parameters", "macs", "bytes")}
    student = measure_size(load_student(folder), image).model_dump()
    return {"student": student, "teachers": total, "per_teacher": per_teacher}


def _speeds(
    stages: dict[str, dict[str, Any]], extraction: list[dict[str, Any]], evaluated: dict[str, Any]
) -> dict[str, dict[str, float]]:
    amounts = {stage: (s["history"][-1]["images"], s["seconds"]) for stage, s in stages.items()}
    amounts["extract"] = (sum(p["images"] for p in extraction), sum(p["seconds"] for p in extraction))
    amounts["evaluate"] = (evaluated["images"], evaluated["seconds"])
    return {
        s: {"seconds": seconds, "images_per_s": images / seconds} for s, (images, seconds) in amounts.items()
    }


def _final_metrics(report: Report) -> dict[str, float]:
    accuracy = report.accuracy
    metrics: dict[str, float | None] = {
        "evaluate/union": accuracy.union,
        "evaluate/ensemble": accuracy.ensemble,
        "evaluate/agreement": accuracy.agreement,
    }
    for name, pair in accuracy.per_teacher.items():
        metrics |= {f"evaluate/teacher_{name}": pair.teacher, f"evaluate/student_{name}": pair.student}
    for tap, code in report.codes.items():
        metrics |= {f"codes/relative_error_{tap}": code.relative_error}
        metrics |= {f"codes/optimal_relative_error_{tap}": code.optimal_relative_error}
    metrics |= {f"layers/relative_error_{tap}": layer.relative_error for tap, layer in report.layers.items()}
    metrics |= {f"{stage}/seconds": speed.seconds for stage, speed in report.stages.items()}
    return {name: value for name, value in metrics.items() if value is not None}
