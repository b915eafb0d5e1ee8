"""Image sources as Ray Datasets: listed on the driver, read and decoded in parallel tasks."""

import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from ka_ray.config import ImagesConfig
from ka_ray.distributed.cluster import TASK_CPUS
from ka_ray.errors import InputError
from ka_ray.images import Source, read_chunk

Columns = dict[str, npt.NDArray[Any]]


def read_images(
    config: ImagesConfig,
    source: Source,
    ids: npt.NDArray[np.int64],
    log: Any,
    only_classes: frozenset[str] | None = None,
) -> ray.data.Dataset:
    """Stream decoded images.

    Args:
        config: The source's config.
        source: The listed source.
        ids: Wanted image ids, sorted.
        log: A :class:`ka_ray.distributed.actors.ReadingLog`, told of unreadable images.
        only_classes: Keep images with these labels alone.

    Returns:
        Rows of ``image_id``, ``image [3, H, W]`` uint8, ``label`` str ('' where there is none). Iterating
        raises InputError, naming the image, when more are unreadable than the config allows.
    """
    wanted = [chunk for chunk in source.chunks if _overlaps(chunk.first_id, chunk.num_images, ids)]
    chunks = ray.data.from_items(
        [{"chunk": pickle.dumps(chunk)} for chunk in wanted], override_num_blocks=min(len(wanted), 1000)
    )
    all_ids = ray.put(ids)

    def read(batch: Columns) -> Iterator[Columns]:
        def on_unreadable(image_id: int, name: str) -> None:
            if ray.get(log.unreadable.remote(image_id, name)):
                limit = config.max_unreadable
                raise InputError(
                    f"image {name} cannot be read; images.max_unreadable = {limit} allows no more"
                )

        wanted_ids = ray.get(all_ids)
        for pickled in batch["chunk"]:
            chunk = pickle.loads(pickled)
            yield from read_chunk(config, source.read, chunk, wanted_ids, only_classes, on_unreadable)

    return chunks.map_batches(read, batch_size=1, num_cpus=TASK_CPUS)


def _overlaps(first_id: int, num_images: int, ids: npt.NDArray[np.int64]) -> bool:
    return bool(np.searchsorted(ids, first_id) < np.searchsorted(ids, first_id + num_images))
