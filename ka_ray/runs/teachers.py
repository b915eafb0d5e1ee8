"""The teachers of a run: train those that have no checkpoint, and notice checkpoints that have changed."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ka_ray.config import DESCRIPTIVE, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES
from ka_ray.images.split import ImageSet
from ka_ray.images.views import IMAGE
from ka_ray.runs.context import Run, RunContext
from ka_ray.runs.execution import NO_TEACHERS, store_images, train
from ka_ray.runs.extension import TEACHERS, find_earlier_checkpoint
from ka_ray.runs.label_checks import check_training_labels
from ka_ray.runs.output_folder import DIGESTS
from ka_ray.stages.teacher import teacher_checkpoint_path, train_teacher
from ka_ray.storage.files import read_json, write_json
from ka_ray.teachers.checkpoint import checkpoint_digest
from ka_ray.teachers.descriptive import KEY, digest_descriptive
from ka_ray.training.fit import ProgressCallback


def teach_missing(run: Run) -> Run:
    """Train the teachers that have a ``training`` section instead of a checkpoint.

    Args:
        run: The run; its training images are labelled if a teacher must be trained.

    Returns:
        The run, with every teacher's checkpoint in its config.

    Raises:
        InputError: The checkpoint of a teacher, or of the descriptive network, has changed since an earlier
            attempt in the same output folder.
    """
    folder, config = run.folder / TEACHERS, run.config
    checkpoints = {
        teacher.name: find_earlier_checkpoint(config, teacher)
        or teacher_checkpoint_path(folder, teacher.name)
        for teacher in config.teachers
    }
    missing = [t for t in config.teachers if t.training is not None and not checkpoints[t.name].exists()]
    if missing:
        train_teachers(run, missing, run.training_images, folder, run.plan.views.teacher_columns)
    teachers = tuple(with_checkpoint(teacher, checkpoints[teacher.name]) for teacher in config.teachers)
    run = dataclasses.replace(run, config=config.model_copy(update={"teachers": teachers}))
    _check_unchanged(run)
    return run


def train_teachers(
    run: RunContext,
    teachers: Sequence[TeacherConfig],
    images: ImageSet,
    folder: Path,
    columns: Mapping[str, str],
) -> None:
    """Train teachers, one after the other, in one group of workers.

    Args:
        run: The run, of a student or of a single teacher.
        teachers: The teachers to train, with their ``training`` sections.
        images: Labelled images.
        folder: Gets one folder per teacher, and the decoded images.
        columns: Teacher -> the column of ``images`` that it sees.

    Raises:
        InputError: There is no image of a class of a teacher.
    """
    run.notify(*check_training_labels(images, teachers))
    seed, stored = run.config.seed, folder / IMAGES
    classes = frozenset(name for teacher in teachers for name in teacher.classes)
    views = images.views or {}
    row_bytes = sum(math.prod(view.shape) for view in views.values())
    read_spec = replace(NO_TEACHERS, stored_images=tuple(name for name in views if name != IMAGE))
    store_images(run, images, stored, row_bytes, read_spec=read_spec, classes=classes)

    def train_loop_per_worker(device: torch.device, report: ProgressCallback) -> None:
        for teacher in teachers:
            train_teacher(teacher, stored, folder, seed, device, report, columns[teacher.name])

    train(run, f"teaching {', '.join(t.name for t in teachers)}", train_loop_per_worker)


def with_checkpoint(teacher: TeacherConfig, checkpoint: Path) -> TeacherConfig:
    """Replace the ``training`` section of a teacher by its checkpoint; other teachers stay as they are.

    Args:
        teacher: The teacher.
        checkpoint: The file of weights that the training has written.
    """
    if teacher.training is None:
        return teacher
    return teacher.model_copy(update={"training": None, "checkpoint": checkpoint})


def _check_unchanged(run: Run) -> None:
    """Refuse to continue if a checkpoint has changed: the stored features came from its old weights."""
    path = run.folder / DIGESTS
    digests = {
        t.name: checkpoint_digest(t.checkpoint) for t in run.config.teachers if t.checkpoint is not None
    }
    descriptive = run.config.scores.descriptive
    if descriptive is not None:
        digests[DESCRIPTIVE] = digest_descriptive(descriptive)
    known = read_json(path) if path.exists() else digests
    changed = [name for name, value in digests.items() if known.get(name) != value]
    if changed:
        key = KEY if descriptive is not None and changed[0] == DESCRIPTIVE else f"teachers.{changed[0]}"
        raise InputError(
            f"{key}.checkpoint: the file has changed since the run in {run.folder} began; give another "
            "--output"
        )
    write_json(path, digests)
