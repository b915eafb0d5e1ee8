"""Stream images through one pool of actors per teacher, and store stacked features and scores on disk."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from ka_ray.config import TeacherConfig
from ka_ray.distributed.images import read_images
from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.retries import repeat_until_complete
from ka_ray.distributed.shard_writer import ShardWriter
from ka_ray.distributed.stalled import start_watch
from ka_ray.distributed.teachers import list_networks, run_teachers
from ka_ray.features.shard_recovery import recover_shards
from ka_ray.features.stack import SCORES, TARGETS
from ka_ray.features.store import SHARDS_KEY, create_shard_folder, mark_folder_finished
from ka_ray.images import Ids, Source
from ka_ray.images.split import ImageSet
from ka_ray.storage.files import make_folder, read_json, write_json
from ka_ray.teachers.reading import ReadSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """What one pass over images reads, and where it stores features or scores.

    Attributes:
        images: The images.
        folder: The folder in which the shards (files of rows) are stored.
        row_bytes: Estimated size of the row that is stored for one image, in bytes.
        only_classes: Keep only images with these labels; None keeps all.
    """

    images: ImageSet
    folder: Path
    row_bytes: int
    only_classes: frozenset[str] | None = None


def extract_features(
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    pools: Pools,
    reading: ReadSpec,
    on_images: Callable[[int], None],
) -> dict[str, Any]:
    """Store exactly one row per image: the image, its label, and the teachers' features and scores.

    Rows that an earlier attempt has stored are kept.

    Args:
        work: The images, and the folder that gets them.
        teachers: The teachers in stacking order; empty to store only images and labels.
        pools: The processes of the pass.
        reading: Which features and scores of the teachers are stored.
        on_images: Called with the number of images that were stored since the last call.

    Returns:
        The content of a :class:`ka_ray.reports.summaries.ExtractionSummary`.

    Raises:
        InputError: Too many images are unreadable.
        ClusterError: Workers were lost repeatedly without progress, or there was none for ``ray.timeout_s``.
    """
    began, shards = time.perf_counter(), _Shards(work.folder, work.images.source)
    on_images(shards.resumed)  # those of an earlier attempt
    watch = start_watch("extraction", work.images, list_networks(teachers, reading), pools)

    def one_pass(ids: Ids) -> None:
        images = read_images(work.images.with_ids(ids), watch.monitor, pools, work.only_classes)
        rows = run_teachers(images, teachers, pools, reading, watch.monitor)
        for row in watch.read_rows(_write(rows, work, teachers, pools, reading, watch.monitor)):
            on_images(int(row["images"]))

    passes = repeat_until_complete(work.images.ids, shards.recover, one_pass, watch.monitor)
    counted = {"passes": passes, "seconds": time.perf_counter() - began}
    summary: dict[str, Any] = ray.get(watch.monitor.summary.remote()) | shards.summary | counted
    mark_folder_finished(work.folder, summary)
    return summary


class _Shards:
    """The shards in a folder: which images have a row there. Checked again after every pass."""

    def __init__(self, folder: Path, source: Source) -> None:
        make_folder(folder)
        listing_file, listing = folder / "listing.json", {"sha256": source.digest}
        if listing_file.exists() and read_json(listing_file) != listing:
            # An id is a position in the list of images. In another list, the stored ids mean other images.
            logger.warning(
                "%s: the images have changed since the last attempt; starting from scratch", folder
            )
            create_shard_folder(folder)
        write_json(listing_file, listing)
        # Counted over all passes, while `_recovered` describes only the latest state of the folder.
        self._folder, self._duplicate_rows, self._damaged = folder, 0, list[str]()
        self.resumed = len(self.recover())

    def recover(self) -> Ids:
        """Remove damaged and duplicate rows, and return the ids of the images that have a row."""
        self._recovered = recover_shards(self._folder)
        self._duplicate_rows += self._recovered.duplicate_rows
        self._damaged += self._recovered.damaged
        return self._recovered.ids

    @property
    def summary(self) -> dict[str, Any]:
        kept = self._recovered
        return {
            "images": len(kept.ids),
            "bytes": kept.num_bytes,
            SHARDS_KEY: kept.shards,
            "resumed": self.resumed,
            "duplicate_rows": self._duplicate_rows,
            "damaged": self._damaged,
        }


def _write(
    rows: ray.data.Dataset,
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    pools: Pools,
    reading: ReadSpec,
    monitor: Any,
) -> ray.data.Dataset:
    """Return a lazy dataset that writes the rows as shards when it is read; it has one row per shard."""
    # All teachers have the same taps, so those of the first one are read here.
    taps = list(next(iter(reading.paths.values()))) if reading.paths else []
    batch_size = pools.batch_size
    # Rounded down to a multiple of the batch size in which the rows come from the teachers.
    rows_per_shard = (
        max(1, int(pools.extract.shard_mib * 1024**2) // work.row_bytes // batch_size) * batch_size
    )
    scores = TARGETS if reading.scores.views else SCORES
    names = [teacher.name for teacher in teachers]
    write = ShardWriter(work.folder, taps, names, monitor, scores, reading.stored_images, reading.float32)
    return rows.map_batches(write, batch_size=rows_per_shard, **remote_options(pools.placement.decoding))
