"""The steps of a run. Each is skipped if the output folder already holds its result."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES
from ka_ray.runs.context import Run
from ka_ray.runs.execution import store_images, train
from ka_ray.runs.gate_samples import HINTS, Embedding, find_embeddings
from ka_ray.runs.output_folder import check_disk
from ka_ray.runs.precision import choose_precision, count_float32_bytes
from ka_ray.runs.stored_parts import StoredPart, list_missing_parts
from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.inputs import (
    StageInputs,
    epoch_students_folder,
    load_stage,
    stage_summary_path,
)
from ka_ray.stages.layer_solver import describe_gram_sizes
from ka_ray.stages.shared_start import copy_start, describe_origin_of_start
from ka_ray.stages.start import start_student_folder
from ka_ray.storage.files import exists, format_bytes
from ka_ray.student import Student, StudentSpec, save_student
from ka_ray.student.exported_graph import save_graph
from ka_ray.student.from_moments import unsupported_reason
from ka_ray.student.network import find_foreign_function
from ka_ray.student.plan import Plan
from ka_ray.student.spec import read_spec as read_student_spec
from ka_ray.training.fit import Progress, ProgressCallback


def extract(run: Run, students: Sequence[Config]) -> dict[str, Embedding]:
    """Stream the training images through the teachers to disk.

    The features of ``extract.images`` images are stored; of the other images only the teachers' scores, from
    which joint learning learns.

    Args:
        run: The run.
        students: The configs of the students that will learn from what is stored. If none of them learns
            jointly, only images with features are stored.

    Returns:
        Teacher, or descriptive network -> its embedding, if a gate needs them.

    Raises:
        InputError: The disk has too little room.
    """
    embeddings = find_embeddings(run, students)
    parts = list_missing_parts(run.config, run.plan, run.training_images, students, embeddings)
    run.notify(*(images.source.note for name, images, *_ in parts if name == HINTS))
    if parts:
        float32 = choose_precision(run, parts[0][-1]).float32  # the first part reads most
        parts = [_with_float32(run.plan, part, float32, embeddings) for part in parts]
    needed = sum(len(images.ids) * row_bytes for _, images, row_bytes, _ in parts)
    check_disk(run.folder, needed, [run.folder / name for name, *_ in parts])
    for name, images, row_bytes, read_spec in parts:
        what, folder = "features and scores" if name == FEATURES else "scores", run.folder / name
        sizes = f"{format_bytes(row_bytes)} = {format_bytes(len(images.ids) * row_bytes)}"
        run.notify(f"extracting {what}: {len(images.ids)} images x {sizes} into {folder}")
        store_images(run, images, folder, row_bytes, run.config.teachers, read_spec)
    return embeddings


def _with_float32(
    plan: Plan, part: StoredPart, float32: frozenset[str], embeddings: Mapping[str, Embedding]
) -> StoredPart:
    name, images, row_bytes, reading = part
    reading = dataclasses.replace(reading, float32=float32)
    channels = sum(embedding.channels for embedding in embeddings.values())
    return name, images, row_bytes + count_float32_bytes(plan, reading, channels), reading


@dataclass(frozen=True)
class StudentJob:
    """A student to learn, from stored features that may be shared with other students.

    Attributes:
        name: Prefix of the names of its stages in progress reports; empty if there is only one student.
        config: The config of its run; every teacher has a checkpoint.
        plan: The networks that are built.
        folder: The folder where the results of its stages and the student are written.
    """

    name: str
    config: Config
    plan: Plan
    folder: Path

    @property
    def missing(self) -> list[str]:
        """The stages that have no result yet."""
        return [
            stage for stage in list_stages(self.config) if not stage_summary_path(self.folder, stage).exists()
        ]


def learn(run: Run, students: Sequence[StudentJob]) -> None:
    """Learn students, one after the other in one group of workers, and save each for use.

    Args:
        run: The run, whose output folder holds the stored features and scores.
        students: The students; those whose stages all have results are not learned again.

    Raises:
        InputError: A folder holds a student of another function than the config names.
    """
    for job in students:
        refuse_other_function(job.folder, job.plan.spec)
    waiting, data = [student for student in students if student.missing], run.folder
    if waiting:
        alike = _find_alike(students)

        def train_loop_per_worker(device: torch.device, report: ProgressCallback) -> None:
            for job in waiting:
                copy_start(alike.get(job.folder, []), job.folder)
                inputs = StageInputs(
                    job.config, job.plan, data, job.folder, device, with_student_name(job, report)
                )
                run_stages(inputs)

        what = ", ".join(waiting[0].missing) if len(students) == 1 else f"{len(waiting)} students"
        # Students often have the same notes: `dict.fromkeys` drops the repeats and keeps the order.
        run.notify(*dict.fromkeys(note for job in waiting for note in solver_notes(job)))
        train(run, f"learning {what}", train_loop_per_worker)
    for job in students:
        if not (job.folder / "student.json").exists():
            student = Student(job.plan.spec)
            load_stage(job.folder, "joint", student)
            run.notify(export_graph(student, job.folder))
            save_student(student, job.folder)


def refuse_other_function(folder: Path, spec: StudentSpec) -> None:
    """Refuse a student of an earlier attempt that would run another function than this run's own student.

    The stages of a run build its students without asking for trust, because its config names the function.
    But an output folder may come from somebody else.

    Args:
        folder: The folder of a student, which may not exist yet; those of its start and its epochs are
            below it.
        spec: The student of the run.

    Raises:
        InputError: One of the students names another function.
    """
    own = find_foreign_function(spec)
    folders = [folder, start_student_folder(folder), *epoch_students_folder(folder).glob("*")]
    for path in filter(exists, (one / "student.json" for one in folders)):
        other = find_foreign_function(read_student_spec(path))
        if other not in (None, own):
            raise InputError(
                f"{path}: its network is built by the function {other!r}, which the config of this run does "
                "not name; delete the file, or give another --output"
            )


def _find_alike(students: Sequence[StudentJob]) -> dict[Path, list[Path]]:
    """Return the folder of each student that starts from weights -> those of the others that start alike."""
    origins = {job.folder: describe_origin_of_start(job.config, job.plan) for job in students}
    return {
        folder: [other for other, its_own in origins.items() if other != folder and its_own == origin]
        for folder, origin in origins.items()
        if origin is not None
    }


def export_graph(student: Student, folder: Path) -> str | None:
    """Write the graph of a student whose network is built by a function of the user's.

    With it, others can use the student without the function, see :func:`ka_ray.student.load_student`.
    Students of other networks need none.

    Args:
        student: The student.
        folder: Its folder.

    Returns:
        A note for the user if the network cannot be exported, or the graph not be written; otherwise None.
    """
    if find_foreign_function(student.spec) is None:
        return None
    try:
        save_graph(student, folder)
    except Exception as error:  # the function's own code runs: it must not cost the student that is finished
        why = str(error) if isinstance(error, InputError | OSError) else f"{type(error).__name__}: {error}"
        return f"the student has no exported graph, so using it needs its function and --trust: {why}"
    return None


def solver_notes(job: StudentJob) -> list[str | None]:
    """Return notes for the user on how the stages that have no result yet will be computed.

    They tell the size of the Gram matrices, and whether channels are chosen in another way than usual.
    """
    notes: list[str | None] = []
    if "codes" in job.missing and job.config.codes.basis == "channels":
        stacked = {tap: shape[0] for tap, shape in job.plan.shapes.items()}
        reason = unsupported_reason(job.plan.spec, stacked)
        if reason is not None:
            notes.append(
                "codes: each tap's channels are chosen by how well they predict its other channels, not the "
                f"targets of the next layer ({reason})"
            )
    if "layers" in job.missing:
        notes.append(describe_gram_sizes(Student(job.plan.spec), job.config.layers))
    return notes


def with_student_name(job: StudentJob, report: Callable[[Progress], None]) -> Callable[[Progress], None]:
    """Put the name of a student before the stage in its progress reports.

    Args:
        job: The student; without a name, reports stay as they are.
        report: Receives the changed reports.
    """
    if not job.name:
        return report
    return lambda progress: report(dataclasses.replace(progress, stage=f"{job.name}/{progress.stage}"))
