"""What an unfinished pass left in a folder of shards, so that the next one does the rest alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, open_random_access

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RecoveredShards:
    """Rows that stand.

    Attributes:
        shards: The names of their files.
        ids: Of their images, sorted, each once.
        num_bytes: Of their shards.
        doubled: Rows that stood twice; their second shard was removed.
        damaged: Shards that could not be read, and were removed.
    """

    shards: tuple[str, ...]
    ids: Ids
    num_bytes: int
    duplicate_rows: int
    damaged: tuple[str, ...]


def recover_shards(folder: Path) -> RecoveredShards:
    """Keep the whole shards of a folder; remove half-written and damaged ones, and those with doubled rows.

    A removed shard's other rows are missing then, and made again: a row is there once, or not at all.
    """
    kept, damaged, num_bytes, duplicate_rows, seen = list[str](), list[str](), 0, 0, set[int]()
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    shards = sorted(folder.glob("*.arrow"))
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        all_ids = list(pool.map(_ids_if_whole, shards))
    for shard, ids in zip(shards, all_ids, strict=True):
        here = set() if ids is None else set(ids.tolist())
        twice = 0 if ids is None else len(ids) - len(here - seen)
        if ids is None or twice:
            duplicate_rows += twice
            damaged += [shard.name] if ids is None else []
            shard.unlink(missing_ok=True)
        else:
            seen |= here
            kept.append(shard.name)
            num_bytes += shard.stat().st_size
    return RecoveredShards(
        tuple(kept), np.array(sorted(seen), np.int64), num_bytes, duplicate_rows, tuple(damaged)
    )


def _ids_if_whole(shard: Path) -> Ids | None:
    try:
        return read_image_ids(shard)
    except (
        pa.ArrowException,
        KeyError,
    ):  # an OSError is the disk's or the network's: nothing is removed for it
        return None


def read_image_ids(shard: Path) -> Ids:
    """Read the image ids of a shard, and no more of it.

    Raises:
        pyarrow.ArrowException: It is no whole Arrow file.
    """
    with open_random_access(shard) as source, source.open("rb") if source is shard else source as file:
        place = pa.ipc.open_file(file).schema.get_field_index("image_id")
        if place < 0:
            raise KeyError("image_id")
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[place]))
        columns = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        parts = [np.frombuffer(c.buffers()[1], np.int64, len(c), c.offset * 8) for c in columns]
        return np.concatenate(parts).copy() if parts else np.empty(0, np.int64)
