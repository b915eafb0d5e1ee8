"""Recover the shards that an interrupted pass left, so that the next pass writes only the missing rows."""

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
    """The complete shards of an unfinished folder.

    Attributes:
        shards: File names of the shards that were kept.
        ids: Image ids of their rows, sorted, each once; ``[n]``.
        num_bytes: Size of the kept shards on disk, in bytes.
        duplicate_rows: Number of rows that existed twice. The second shard with such a row was removed.
        damaged: File names of the shards that could not be read. They were removed.
    """

    shards: tuple[str, ...]
    ids: Ids
    num_bytes: int
    duplicate_rows: int
    damaged: tuple[str, ...]


def recover_shards(folder: Path) -> RecoveredShards:
    """Keep the complete shards of a folder and remove the others.

    Half-written and damaged shards are removed, and so is each shard that repeats a row of an earlier one.
    All rows of a removed shard count as missing, so the next pass computes them again. Afterwards each row
    exists once or not at all.

    Args:
        folder: Folder with the shards of an interrupted pass.

    Returns:
        The shards that were kept, and what was removed.
    """
    kept, damaged, num_bytes, duplicate_rows, seen = list[str](), list[str](), 0, 0, set[int]()
    # Writers write to a hidden ".part" file first, and rename it when it is complete.
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
    shards = sorted(folder.glob("*.arrow"))
    # In a bucket each shard costs a few requests, so many shards are read at the same time.
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        all_ids = list(pool.map(_ids_if_complete, shards))
    for shard, ids in zip(shards, all_ids, strict=True):
        shard_ids = set() if ids is None else set(ids.tolist())
        # Counts the rows of earlier shards and the rows that this shard itself holds twice.
        duplicates = 0 if ids is None else len(ids) - len(shard_ids - seen)
        if ids is None or duplicates:
            duplicate_rows += duplicates
            damaged += [shard.name] if ids is None else []
            shard.unlink(missing_ok=True)
        else:
            seen |= shard_ids
            kept.append(shard.name)
            num_bytes += shard.stat().st_size
    ids_kept = np.array(sorted(seen), np.int64)
    return RecoveredShards(tuple(kept), ids_kept, num_bytes, duplicate_rows, tuple(damaged))


def _ids_if_complete(shard: Path) -> Ids | None:
    """Return the image ids of a shard, or None if the shard is damaged."""
    try:
        return read_image_ids(shard)
    except (pa.ArrowException, KeyError, ValueError, TypeError, AttributeError):
        return None
    except OSError as error:
        # The disk or the network failed, which is no reason to remove a shard; unless Arrow says that the
        # content is damaged, for which it has no type of its own.
        if "flatbuffer" not in str(error).lower():
            raise
        return None


def read_image_ids(shard: Path) -> Ids:
    """Read only the image ids of a shard; see :func:`read_numbers`."""
    return read_numbers(shard, "image_id")


def read_numbers(shard: Path, column: str) -> npt.NDArray[np.int64]:
    """Read only one column of a shard.

    Args:
        shard: Path of an Arrow file.
        column: Name of a column of integers of 64 bits, such as ``image_id``.

    Returns:
        The values in the order of the rows, ``[n]``.

    Raises:
        pyarrow.ArrowException: The file is not a complete Arrow file.
        KeyError: The file has no such column.
    """
    # A local shard is returned as its path, which still has to be opened; a remote one as an open file.
    with open_random_access(shard) as source, source.open("rb") if source is shard else source as file:
        index = pa.ipc.open_file(file).schema.get_field_index(column)
        if index < 0:
            raise KeyError(column)
        # Only this column's bytes are read; the feature columns are a thousand times larger.
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=[index]))
        columns = [reader.get_batch(i).column(0) for i in range(reader.num_record_batches)]
        # Shards store numbers as fixed-size binary (see store.py), so the values are read from the buffer.
        parts = [np.frombuffer(c.buffers()[1], np.int64, len(c), c.offset * 8) for c in columns]
        return np.concatenate(parts).copy() if parts else np.empty(0, np.int64)
