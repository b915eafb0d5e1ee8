"""Write stacked rows as shards on disk.

This module and :mod:`ka_ray.distributed.images` do not import torch, so that the worker processes that run
their tasks start in a fraction of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ka_ray.distributed.images import Columns
from ka_ray.distributed.restarts import WRITING, StartCount
from ka_ray.distributed.work_clock import record_work
from ka_ray.features.stack import SCORES, stack_columns
from ka_ray.features.store import write_shard
from ka_ray.images.pixel_digests import DIGEST, digest_pixels
from ka_ray.images.views import IMAGE


@dataclass(frozen=True)
class ShardWriter:
    """Stacks each batch's features and writes it as one shard.

    Attributes:
        folder: Gets the shards.
        taps: The taps whose features are in the batch; empty if only scores are.
        teachers: The names of the teachers, in stacking order.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass, which counts attempts.
        scores: Which score column of the teachers is stored: :data:`ka_ray.features.stack.SCORES`, or
            :data:`ka_ray.features.stack.TARGETS`, the scores averaged over views.
        stored_images: Columns of images that are stored besides ``image``.
        float32: Stacked columns that are not rounded to float16.
    """

    folder: Path
    taps: Sequence[str]
    teachers: Sequence[str]
    monitor: Any
    scores: str = SCORES
    stored_images: tuple[str, ...] = ()
    float32: frozenset[str] = frozenset()

    def __call__(self, batch: Columns) -> Columns:
        """Write a batch; return its ``images`` and ``bytes`` as one row."""
        # A repeated task writes the same batches again: the smallest id says which batch of the task it is.
        StartCount(self.monitor, WRITING, batch["image_id"].min()).check()
        with record_work(self.monitor, "write shards"):
            columns = stack_columns(
                batch, self.taps, self.teachers, self.scores, self.stored_images, self.float32
            )
            written = write_shard(self.folder, columns | {DIGEST: digest_pixels(batch[IMAGE])})
        return {"images": np.array([len(batch["image_id"])]), "bytes": np.array([written])}
