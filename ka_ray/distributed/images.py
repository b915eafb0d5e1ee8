"""Image sources as Ray Datasets: listed on the driver, read and decoded in parallel tasks."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray.data import TaskPoolStrategy

from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.restarts import READING, StartCount
from ka_ray.distributed.work_clock import record_items
from ka_ray.errors import InputError
from ka_ray.images import Chunk, read_chunk
from ka_ray.images.split import ImageSet

Columns = dict[str, npt.NDArray[Any]]

MAX_BLOCKS = 1000
"""Maximum number of Ray Data blocks per pass. Ray Data keeps records of every block, so a block of a large
source has several chunks."""


def read_images(
    images: ImageSet,
    monitor: Any,
    pools: Pools,
    only_classes: frozenset[str] | None = None,
) -> ray.data.Dataset:
    """Stream decoded images.

    Args:
        images: The images to read.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass; it records which images yield
            no row.
        pools: The resources of each task.
        only_classes: Keep only images with these labels; None keeps all.

    Returns:
        Rows of ``image_id``, a column ``[C, H, W]`` uint8 per view, ``label`` str ('' if none). Iterating
        raises InputError, naming the image, when more are unreadable than the config allows.
    """
    chunks = images.source.chunks
    wanted = [chunk for chunk in chunks if _overlaps(chunk.first_id, chunk.num_images, images.ids)]
    blocks = min(len(wanted), MAX_BLOCKS)
    # Not `ray.data.read_images` or `read_parquet`: they do not know our image ids, which make a pass
    # repeatable, and can neither leave out nor count unreadable images. Besides, each execution of
    # `read_parquet` starts up to 32 actors that read footers: longer than reading a small source (Ray 2.60).
    rows = ray.data.from_items(
        [{"chunk": pickle.dumps(chunk)} for chunk in wanted], override_num_blocks=blocks
    )
    # The list of all chunks and all ids can be large, and would be sent with every task.
    slim = replace(images, source=replace(images.source, chunks=[]), ids=images.ids[:0])
    reader = _ChunkReader(slim, ray.put(images.ids), only_classes, monitor)
    return rows.map_batches(
        reader,
        batch_size=1,
        # As many tasks as there are blocks, which limits nothing. The next operation has another size: Ray
        # Data fuses operations of equal size and resources, and one task would read a whole shard's chunks.
        compute=TaskPoolStrategy(size=max(1, blocks)),
        **remote_options(pools.placement.decoding),
    )


@dataclass(frozen=True)
class _ChunkReader:
    """Decodes the wanted images of chunks, and reports to the monitor which of them yield no row."""

    images: ImageSet
    all_ids: Any
    only_classes: frozenset[str] | None
    monitor: Any

    def __call__(self, batch: Columns) -> Iterator[Columns]:
        ids = ray.get(self.all_ids)
        for chunk in map(pickle.loads, batch["chunk"]):
            # Raises if the process of this task has already died too often at this chunk.
            StartCount(self.monitor, READING, chunk.first_id).check()
            first, last = np.searchsorted(ids, [chunk.first_id, chunk.first_id + chunk.num_images])
            missing = set(ids[first:last].tolist())
            for columns in record_items(self._read(chunk, ids), self.monitor, "decode images"):
                missing.difference_update(columns["image_id"].tolist())
                yield columns
            self.monitor.record_left_out.remote(sorted(missing))

    def _read(self, chunk: Chunk, ids: npt.NDArray[np.int64]) -> Iterator[Columns]:
        images = self.images
        config, read, views = images.config, images.source.read, images.views
        yield from read_chunk(config, read, chunk, ids, self.only_classes, self._on_unreadable, views)

    def _on_unreadable(self, image_id: int, name: str) -> None:
        if ray.get(self.monitor.record_unreadable.remote(image_id, name)):
            limit = self.images.config.max_unreadable
            raise InputError(f"image {name} cannot be read; images.max_unreadable = {limit} allows no more")


def check_any_readable(images: int, unreadable: Sequence[str]) -> None:
    """Check that a pass has read at least one image, if it wanted any.

    Args:
        images: The number of images of the pass that have a row.
        unreadable: The images that could not be read, each with the reason.

    Raises:
        InputError: All images are unreadable, which ``max_unreadable`` allows.
    """
    if not images and unreadable:
        raise InputError(
            f"images: none of {len(unreadable)} images can be read, for example {unreadable[0]}; "
            "images.max_unreadable allows it, but nothing is left"
        )


def _overlaps(first_id: int, num_images: int, ids: npt.NDArray[np.int64]) -> bool:
    return bool(np.searchsorted(ids, first_id) < np.searchsorted(ids, first_id + num_images))
