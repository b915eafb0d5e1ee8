"""Stream images through one pool of actors a teacher, to stacked features and scores on disk.

Shapes: n images of a batch, C channels of one teacher at a tap, S stacked, K_t classes of a teacher.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.data import ActorPoolStrategy, ExecutionResources

from ka_ray.config import ExtractConfig, ImagesConfig, ScoresConfig, TeacherConfig
from ka_ray.distributed.actors import ReadingLog
from ka_ray.distributed.cluster import TASK_CPUS
from ka_ray.distributed.errors import unwrap
from ka_ray.distributed.images import Columns, read_images
from ka_ray.distributed.shards import SHARD_BYTES, ShardWriter
from ka_ray.features.space import fit_space
from ka_ray.features.stack import SCORES, TARGETS, feature_column
from ka_ray.features.store import finish_folder, start_folder
from ka_ray.images import Ids, Source
from ka_ray.images.augment import score_views
from ka_ray.teachers import load_teacher

BLOCKS = 16
"""Under a limit of the object store, at least so many of Ray Data's blocks fit into it."""


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
    ids: Ids
    folder: Path
    row_bytes: int
    only_classes: frozenset[str] | None = None


@dataclass(frozen=True)
class Reading:
    """What is read of every teacher.

    Attributes:
        paths: teacher -> tap -> module path; no taps gives scores alone.
        spaces: tap -> height and width to which all teachers' features are brought.
        scores: Over which views of an image the scores are averaged.
    """

    paths: Mapping[str, Mapping[str, str]]
    spaces: Mapping[str, tuple[int, ...]]
    scores: ScoresConfig


class TeacherActor:
    """Holds one teacher and adds its features and scores to every batch.

    Args:
        config: The teacher.
        extract: Its share of CPUs and GPUs.
        reading: What is read of it.
        log: A :class:`ka_ray.distributed.actors.ReadingLog`, told where the actor runs.
    """

    def __init__(self, config: TeacherConfig, extract: ExtractConfig, reading: Reading, log: Any) -> None:
        self._device = actor_device(extract)
        self._teacher = load_teacher(config).to(self._device)
        self._paths, self._reading = reading.paths.get(config.name, {}), reading
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
        """Add ``tap@teacher [n, C, *space]`` in fp16 for every tap, and ``scores@teacher [n, K_t]``.

        With views, ``targets@teacher [n, K_t]`` are the scores averaged over them.
        """
        name, images = self._teacher.name, torch.tensor(batch["image"]).to(self._device)
        features, scores = self._teacher.features(images, self._paths)
        for tap, feature in features.items():
            fitted = fit_space(feature, self._reading.spaces[tap])
            in_order = fitted.half().contiguous()  # as Arrow keeps it: [C, *space], whatever the layout here
            batch[feature_column(tap, name)] = in_order.cpu().numpy()
        batch[feature_column(SCORES, name)] = scores.float().cpu().numpy()
        if self._reading.scores.views:
            averaged = score_views(self._teacher.scores, images, self._reading.scores, scores)
            batch[feature_column(TARGETS, name)] = averaged.float().cpu().numpy()
        return batch


def through_teachers(
    rows: ray.data.Dataset,
    teachers: Sequence[TeacherConfig],
    extract: ExtractConfig,
    reading: Reading,
    log: Any,
) -> ray.data.Dataset:
    """Chain one actor pool a teacher behind a dataset of images; see :class:`TeacherActor`."""
    if extract.object_store_gib is not None:
        most, context = round(extract.object_store_gib * 1024**3), rows.context
        limits = ExecutionResources.for_limits(object_store_memory=most)
        context.execution_options.resource_limits = limits
        context.target_max_block_size = min(context.target_max_block_size or most, most // BLOCKS)
    for teacher in teachers:
        rows = rows.map_batches(
            TeacherActor,
            fn_constructor_args=(teacher, extract, reading, log),
            batch_size=extract.batch_size,
            compute=ActorPoolStrategy(size=extract.actors_per_teacher),
            num_cpus=extract.cpus_per_teacher,
            num_gpus=extract.gpus_per_teacher,
        )
    return rows


def extract_features(
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    extract: ExtractConfig,
    reading: Reading,
    on_images: Callable[[int], None],
) -> dict[str, Any]:
    """Write a row an image: itself, label, stacked features, all teachers' scores; none twice, none lost.

    Args:
        work: Which images, and where to.
        teachers: In stacking order; none just stores images and labels.
        extract: Batch size and actors.
        reading: What is read of the teachers.
        on_images: Told how many more images are done.

    Returns:
        ``images``, ``bytes``, ``seconds``, ``unreadable`` (names) and ``placements`` (of the actors).

    Raises:
        InputError: Too many unreadable images.
    """
    began, totals = time.perf_counter(), {"images": 0, "bytes": 0}
    start_folder(work.folder)
    log = ReadingLog.remote(work.images.max_unreadable)  # type: ignore[attr-defined]  # ray.remote class
    images = read_images(work.images, work.source, work.ids, log, work.only_classes)
    rows = through_teachers(images, teachers, extract, reading, log)
    try:
        for row in _write(rows, work, teachers, extract.batch_size, reading).iter_rows():
            totals = {key: total + int(row[key]) for key, total in totals.items()}
            on_images(int(row["images"]))
    except Exception as error:
        raise unwrap(error) from error
    summary: dict[str, Any] = (
        totals | ray.get(log.summary.remote()) | {"seconds": time.perf_counter() - began}
    )
    finish_folder(work.folder, summary)
    return summary


def _write(
    rows: ray.data.Dataset,
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    batch_size: int,
    reading: Reading,
) -> ray.data.Dataset:
    taps = list(next(iter(reading.paths.values()))) if reading.paths else []
    per_shard = max(1, SHARD_BYTES // work.row_bytes // batch_size) * batch_size
    scores = TARGETS if reading.scores.views else SCORES
    write = ShardWriter(work.folder, taps, [teacher.name for teacher in teachers], scores)
    return rows.map_batches(write, batch_size=per_shard, num_cpus=TASK_CPUS)


def spare_gpus(extract: ExtractConfig, num_teachers: int, num_actors: int = 1) -> float:
    """The GPU share of each actor behind the teachers: a teacher's, where they leave that much; else none."""
    each = extract.gpus_per_teacher
    taken = (num_teachers * extract.actors_per_teacher + num_actors) * each
    return each if taken <= ray.cluster_resources().get("GPU", 0) else 0


def actor_device(extract: ExtractConfig) -> torch.device:
    """The device of a teacher actor: the GPU that Ray gave it, else the CPU.

    On a CPU it also limits torch to the threads that the actor's share of CPUs stands for.
    """
    if extract.gpus_per_teacher > 0 and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(max(1, round(extract.cpus_per_teacher)))
    return torch.device("cpu")
