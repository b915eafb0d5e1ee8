"""Stream images through one pool of actors a teacher, to stacked features and amalgamated scores on disk.

Shapes: n images of a batch, C channels of one teacher at a tap, S stacked, K_t classes of a teacher.
"""

import os
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
from ka_ray.distributed.cluster import TASK_CPUS, actor_device
from ka_ray.distributed.errors import unwrap
from ka_ray.distributed.images import Columns, ReadingLog, read_images
from ka_ray.features.stack import feature_column, stack_columns
from ka_ray.features.store import finish_folder, start_folder, write_shard
from ka_ray.images import Source
from ka_ray.teachers import load_teacher

SHARD_BYTES = 64 * 1024**2
"""About what one shard holds."""


@dataclass(frozen=True)
class Extraction:
    """One pass over images.

    Attributes:
        images: Where they come from.
        source: The same, listed.
        ids: Which of them, sorted.
        folder: Where the shards go.
        row_bytes: Estimated bytes of one image's row.
        only_classes: Keep images with these labels alone.
    """

    images: ImagesConfig
    source: Source
    ids: npt.NDArray[np.int64]
    folder: Path
    row_bytes: int
    only_classes: frozenset[str] | None = None


class TeacherActor:
    """Holds one teacher and adds its features and scores to every batch."""

    def __init__(
        self, config: TeacherConfig, extract: ExtractConfig, paths: Mapping[str, str], log: Any
    ) -> None:
        self._device = actor_device(extract)
        self._teacher = load_teacher(config).to(self._device)
        self._paths = paths
        context = ray.get_runtime_context()
        log.placed.remote(
            {
                "teacher": config.name,
                "node": context.get_node_id(),
                "gpus": [int(i) for i in ray.get_gpu_ids()],
                "device": str(self._device),
                "pid": os.getpid(),
            }
        )

    def __call__(self, batch: Columns) -> Columns:
        """Add ``tap@teacher [n, C, *space]`` in fp16 for every tap, and ``scores@teacher [n, K_t]``."""
        images = torch.tensor(batch["image"]).to(self._device)
        features, scores = self._teacher.features(images, self._paths)
        for tap, feature in features.items():
            batch[feature_column(tap, self._teacher.name)] = feature.half().cpu().numpy()
        batch[feature_column("scores", self._teacher.name)] = scores.float().cpu().numpy()
        return batch


def through_teachers(
    rows: ray.data.Dataset,
    teachers: Sequence[TeacherConfig],
    extract: ExtractConfig,
    paths: Mapping[str, Mapping[str, str]],
    log: Any,
) -> ray.data.Dataset:
    """Chain one actor pool a teacher behind a dataset of images."""
    for teacher in teachers:
        rows = rows.map_batches(
            TeacherActor,
            fn_constructor_args=(teacher, extract, paths.get(teacher.name, {}), log),
            batch_size=extract.batch_size,
            compute=ActorPoolStrategy(size=extract.actors_per_teacher),
            num_cpus=extract.cpus_per_teacher,
            num_gpus=extract.gpus_per_teacher,
        )
    return rows


def pop_scores(batch: Columns, label_sets: LabelSets) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Take every teacher's scores `[n, K_t]` out of a batch; give them and the amalgamated ones `[n, K]`."""
    own = [torch.tensor(batch.pop(feature_column("scores", name))) for name in label_sets.by_teacher]
    return own, label_sets.amalgamate(own)


def extract_features(
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    extract: ExtractConfig,
    paths: Mapping[str, Mapping[str, str]],
    label_sets: LabelSets | None,
    on_images: Callable[[int], None],
) -> dict[str, Any]:
    """Write one row an image: the image, its label, its stacked features and amalgamated scores.

    A rerun of any task writes the same file again, and the folder counts as whole only when its last line
    is written: rows are neither lost nor doubled.

    Args:
        work: Which images, and where to.
        teachers: In stacking order; none just stores images and labels.
        extract: Batch size and actors.
        paths: teacher -> tap -> module path; no taps gives scores alone.
        label_sets: Of the teachers; None without teachers.
        on_images: Told how many more images are done.

    Returns:
        ``images``, ``bytes``, ``seconds``, ``unreadable`` (names) and ``placements`` (of the actors).

    Raises:
        InputError: Too many unreadable images.
    """
    began = time.perf_counter()
    start_folder(work.folder)
    log = ReadingLog.remote(work.images.max_unreadable)  # type: ignore[attr-defined]  # ray.remote class
    rows = read_images(work.images, work.source, work.ids, log, work.only_classes)
    rows = through_teachers(rows, teachers, extract, paths, log)
    taps = list(next(iter(paths.values()))) if paths else []
    folder = work.folder

    def write(batch: Columns) -> Columns:
        if label_sets is not None:
            batch["scores"] = pop_scores(batch, label_sets)[1].half().numpy()
            batch = stack_columns(batch, taps, list(label_sets.by_teacher))
        return {"images": np.array([len(batch["image_id"])]), "bytes": np.array([write_shard(folder, batch)])}

    per_shard = max(1, SHARD_BYTES // work.row_bytes // extract.batch_size) * extract.batch_size
    written = rows.map_batches(write, batch_size=per_shard, num_cpus=TASK_CPUS)
    totals = {"images": 0, "bytes": 0}
    try:
        for row in written.iter_rows():
            totals = {key: total + int(row[key]) for key, total in totals.items()}
            on_images(int(row["images"]))
    except Exception as error:
        raise unwrap(error) from error
    summary = totals | ray.get(log.summary.remote()) | {"seconds": time.perf_counter() - began}
    finish_folder(work.folder, summary)
    return summary
