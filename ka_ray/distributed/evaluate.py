"""Score images by Ray Data, and merge what each batch counts.

Shapes: n images of a batch, K classes.
"""

import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.data import ActorPoolStrategy

from ka_ray.amalgamation import LabelSets
from ka_ray.config import ExtractConfig, ImagesConfig, TeacherConfig
from ka_ray.distributed.actors import ReadingLog
from ka_ray.distributed.errors import unwrap
from ka_ray.distributed.extract import actor_device, pop_scores, through_teachers
from ka_ray.distributed.images import Columns, read_images
from ka_ray.images import Ids, Source
from ka_ray.metrics import Counts, count
from ka_ray.student import load_student


@dataclass(frozen=True)
class Evaluation:
    """What is judged, and on which images.

    Attributes:
        images: Where they come from.
        source: The same, listed.
        ids: Which of them, sorted.
        label_sets: teacher -> its classes.
        teachers: None to judge the student alone.
        student: Folder of the student, or None to judge the teachers alone.
        extract: Actors and batch size.
        only_classes: Keep images with these labels alone.
    """

    images: ImagesConfig
    source: Source
    ids: Ids
    label_sets: Mapping[str, tuple[str, ...]]
    teachers: Sequence[TeacherConfig]
    student: Path | None
    extract: ExtractConfig
    only_classes: frozenset[str] | None = None


class Judge:
    """Scores batches with the student, and counts them against labels and teachers."""

    def __init__(
        self, student: Path | None, label_sets: LabelSets, with_teachers: bool, extract: ExtractConfig
    ) -> None:
        self._device = actor_device(extract)
        self._student = load_student(student).to(self._device) if student else None
        self._label_sets, self._with_teachers = label_sets, with_teachers
        self._index = {name: i for i, name in enumerate(self._label_sets.classes)}

    def __call__(self, batch: Columns) -> Columns:
        """Turn a batch into one row: its pickled :class:`ka_ray.metrics.Counts`."""
        ensemble, own = None, []
        if self._with_teachers:
            scores, amalgamated = pop_scores(batch, self._label_sets)
            ensemble, own = amalgamated.numpy(), [part.numpy() for part in scores]
        counts = count(
            targets=np.array([self._index.get(label, -1) for label in batch["label"]], np.int64),
            student=self._scores(batch["image"]),
            ensemble=ensemble,
            teachers=own,
            columns=[self._label_sets.columns(name) for name in self._label_sets.by_teacher],
        )
        return {"counts": np.array([pickle.dumps(counts)], dtype=object)}

    def _scores(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32] | None:
        if self._student is None:
            return None
        with torch.inference_mode():
            scores: torch.Tensor = self._student(torch.tensor(images).to(self._device))
        array: npt.NDArray[np.float32] = scores.float().cpu().numpy()
        return array


def _spare_gpus(work: Evaluation) -> float:
    """The student's share: a teacher's, where the teachers leave that much; else it runs on a CPU."""
    each = work.extract.gpus_per_teacher
    taken = len(work.teachers) * work.extract.actors_per_teacher * each
    return each if taken + each <= ray.cluster_resources().get("GPU", 0) else 0


def evaluate_images(work: Evaluation, on_images: Callable[[int], None]) -> tuple[Counts, dict[str, Any]]:
    """Judge student and teachers on every image once.

    Returns:
        The merged counts, and ``images``, ``seconds``, ``unreadable`` and ``placements``.

    Raises:
        InputError: Too many unreadable images.
    """
    began = time.perf_counter()
    label_sets = LabelSets(work.label_sets)
    log = ReadingLog.remote(work.images.max_unreadable)  # type: ignore[attr-defined]  # ray.remote class
    rows = read_images(work.images, work.source, work.ids, log, work.only_classes)
    rows = through_teachers(rows, work.teachers, work.extract, {}, log)
    share = work.extract.model_copy(update={"gpus_per_teacher": _spare_gpus(work)})
    judged = rows.map_batches(
        Judge,
        fn_constructor_args=(work.student, label_sets, bool(work.teachers), share),
        batch_size=work.extract.batch_size,
        compute=ActorPoolStrategy(size=1),
        num_cpus=work.extract.cpus_per_teacher,
        num_gpus=share.gpus_per_teacher,
    )
    total = Counts.none(len(label_sets.classes), len(work.label_sets))
    try:
        for row in judged.iter_rows():
            part: Counts = pickle.loads(row["counts"])
            total = total + part
            on_images(part.images)
    except Exception as error:
        raise unwrap(error) from error
    summary = ray.get(log.summary.remote())
    return total, summary | {"images": total.images, "seconds": time.perf_counter() - began}
