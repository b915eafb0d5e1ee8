"""The steps of a run. Each is skipped where what it leaves in the output folder stands already."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.config import Config, ScoresConfig, TeachConfig, TeacherConfig
from ka_ray.distributed.evaluate import Evaluation, evaluate_images
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.resources import pools_of
from ka_ray.distributed.teachers import ReadSpec
from ka_ray.distributed.train import Work, train_in_workers
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.images.split import ImageSet, split_for_features
from ka_ray.metrics import Counts, accuracies
from ka_ray.runs.context import Run
from ka_ray.runs.extension import TEACHERS, taught_before
from ka_ray.runs.output_folder import check_disk
from ka_ray.stages import run_stages, stages_of
from ka_ray.stages.inputs import StageInputs, epochs_folder, load_stage, stage_file
from ka_ray.stages.layer_solver import describe_grams
from ka_ray.stages.teacher import teach, teacher_checkpoint
from ka_ray.storage.files import format_bytes, read_json, write_json
from ka_ray.student import Student, save_student
from ka_ray.student.from_moments import unsupported_reason
from ka_ray.student.plan import Plan
from ka_ray.teachers.checkpoint import digest
from ka_ray.training.fit import Progress

NOTHING = ReadSpec({}, {}, ScoresConfig())
"""What is read of teachers where there are none."""


def check_teachers(run: Run[Config]) -> None:
    """Refuse to go on with features of teachers whose checkpoints have changed since.

    Raises:
        InputError: Naming the teacher.
    """
    path = run.folder / "teachers.json"
    digests = {t.name: digest(t.checkpoint) for t in run.config.teachers if t.checkpoint is not None}
    known = read_json(path) if path.exists() else digests
    changed = [name for name, value in digests.items() if known.get(name) != value]
    if changed:
        raise InputError(
            f"teachers.{changed[0]}.checkpoint: has changed since {run.folder} was begun; "
            "give another --output"
        )
    write_json(path, digests)


def teach_missing(run: Run[Config], images: ImageSet) -> Run[Config]:
    """Train the teachers that come with ``training`` instead of a checkpoint.

    Returns:
        The run with every teacher's checkpoint in its config.
    """
    folder, config = run.folder / TEACHERS, run.config
    places = {t.name: taught_before(config, t) or teacher_checkpoint(folder, t.name) for t in config.teachers}
    untaught = [t for t in config.teachers if t.training is not None and not places[t.name].exists()]
    if untaught:
        teach_all(run, untaught, images, folder)
    taught = tuple(with_checkpoint(teacher, places[teacher.name]) for teacher in config.teachers)
    ready = dataclasses.replace(run, config=config.model_copy(update={"teachers": taught}))
    check_teachers(ready)
    return ready


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
            extract_features(work, [], pools_of(run.config), NOTHING, on_images)

    def train_loop_per_worker(device: torch.device, report: Any) -> None:
        for teacher in teachers:
            teach(teacher, stored, folder, seed, device, report)

    run.display.note(f"teaching {', '.join(t.name for t in teachers)}: starting {ray.group}")
    train(run, train_loop_per_worker)


def train(run: Run[Config | TeachConfig], train_loop_per_worker: Work) -> None:
    """Run training code in the run's group of workers."""
    share = run.config.placement.trainers
    train_in_workers(train_loop_per_worker, run.config.ray, share, run.folder / "ray", run.report, run.tell)


def with_checkpoint(teacher: TeacherConfig, checkpoint: Path) -> TeacherConfig:
    """Point a teacher that was trained here at its checkpoint."""
    if teacher.training is None:
        return teacher
    return teacher.model_copy(update={"training": None, "checkpoint": checkpoint})


def extract(run: Run[Config], plan: Plan, images: ImageSet, joint: bool = True) -> None:
    """Stream the images through the teachers: some keep all their features, the others their scores.

    Without joint learning nothing is learned from the others, and they are left out.
    """
    config, scores = run.config, run.config.scores
    limit = config.extract.images if config.baseline is None else 0
    kept, others = split_for_features(images, limit, config.seed)
    parts = []
    if len(kept.ids):
        row_bytes = plan.feature_bytes + plan.image_bytes
        parts.append((FEATURES, kept, row_bytes, ReadSpec(plan.paths, plan.spaces, scores)))
    if len(others.ids) and joint:
        parts.append((IMAGES, others, plan.image_bytes, ReadSpec({}, {}, scores)))
    parts = [part for part in parts if not (run.folder / part[0] / DONE).exists()]
    needed = sum(len(part.ids) * row_bytes for _, part, row_bytes, _ in parts)
    check_disk(run.folder, needed, [run.folder / name for name, *_ in parts])
    for name, part, row_bytes, reading in parts:
        run.display.note(
            f"extracting {'features and scores' if name == FEATURES else 'scores'}: {len(part.ids)} images x "
            f"{row_bytes / 1024:.1f} KiB = {format_bytes(len(part.ids) * row_bytes)} into {run.folder / name}"
        )
        work = Extraction(part.config, part.source, part.ids, run.folder / name, row_bytes)
        with run.display.images("extract", len(part.ids)) as on_images:
            extract_features(work, config.teachers, pools_of(config), reading, on_images)


@dataclass(frozen=True)
class StudentJob:
    """One student to learn, from features that may be shared with others.

    Attributes:
        name: Stands before its progress; empty where there is one student alone.
        config: Its run; every teacher with a checkpoint.
        plan: What is built.
        folder: Gets the stages and the student.
    """

    name: str
    config: Config
    plan: Plan
    folder: Path

    @property
    def missing(self) -> list[str]:
        """The stages that do not stand yet."""
        return [s for s in stages_of(self.config) if not stage_file(self.folder, s).exists()]


def learn(run: Run[Config], student_jobs: Sequence[StudentJob]) -> None:
    """Learn students, one after the other in one group of workers; keep each for use."""
    waiting, data = [student_job for student_job in student_jobs if student_job.missing], run.folder
    if waiting:

        def train_loop_per_worker(device: torch.device, report: Any) -> None:
            for one in waiting:
                report_as = named(one, report)
                run_stages(StageInputs(one.config, one.plan, data, one.folder, device, report_as))

        what = ", ".join(waiting[0].missing) if len(student_jobs) == 1 else f"{len(waiting)} students"
        run.tell(*dict.fromkeys(note for one in waiting for note in exact_notes(one)))
        run.display.note(f"learning {what}: starting {run.config.ray.group}")
        train(run, train_loop_per_worker)
    for one in student_jobs:
        if not (one.folder / "student.json").exists():
            student = Student(one.plan.spec)
            load_stage(one.folder, "joint", student)
            save_student(student, one.folder)


def exact_notes(one: StudentJob) -> list[str | None]:
    """Say of what is to be computed how large it is, and what will be done otherwise than one may expect."""
    notes: list[str | None] = []
    if "codes" in one.missing and one.config.codes.basis == "channels":
        why = unsupported_reason(one.plan.spec, {tap: shape[0] for tap, shape in one.plan.shapes.items()})
        if why is not None:
            notes.append(
                f"codes: channels are chosen by what they tell of all others, not of the next layer ({why})"
            )
    if "layers" in one.missing:
        notes.append(describe_grams(Student(one.plan.spec), one.config.layers))
    return notes


def named(student_job: StudentJob, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Put the name of a student before its progress."""
    if not student_job.name:
        return report
    return lambda progress: report(
        dataclasses.replace(progress, stage=f"{student_job.name}/{progress.stage}")
    )


def evaluate_students(
    run: Run[Config], label_sets: LabelSets, images: ImageSet, students: Mapping[str, Path]
) -> tuple[dict[str, Counts], dict[str, Any]]:
    """Judge students beside the teachers, all in one pass over the images."""
    config = run.config
    work = Evaluation(
        images=images.config,
        source=images.source,
        ids=images.ids,
        label_sets=label_sets,
        teachers=config.teachers,
        students=students,
        pools=pools_of(config),
        scores=config.scores,
    )
    with run.display.images("evaluate", len(images.ids)) as on_images:
        return evaluate_images(work, on_images)


def evaluate_student(run: Run[Config], plan: Plan, images: ImageSet) -> dict[str, Any]:
    """Judge the student, and its epochs if they were kept; give accuracies, confusion, what the pass took."""
    path = stage_file(run.folder, "evaluate")
    if not path.exists():
        epochs = sorted(epochs_folder(run.folder).glob("*/student.json"), key=lambda p: int(p.parent.name))
        students = {"student": run.folder} | {epoch.parent.name: epoch.parent for epoch in epochs}
        counts, summary = evaluate_students(run, plan.label_sets, images, students)
        names = list(plan.label_sets.by_teacher)
        history = read_json(stage_file(run.folder, "joint"))["history"]
        curve = [
            {"images": record["images"], "accuracy": accuracies(counts[epoch.parent.name], names)}
            for record, epoch in zip(history, epochs, strict=False)
        ]
        confusion = counts["student"].student.tolist()
        accuracy = accuracies(counts["student"], names)
        write_json(path, summary | {"accuracy": accuracy, "confusion": confusion, "curve": curve})
    return read_json(path)
