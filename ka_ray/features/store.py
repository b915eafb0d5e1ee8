"""Features on disk: Arrow shards, memory-mapped, rows in the order of their image ids.

Arrow IPC, not Parquet: a training step gathers rows from all over the set, and a memory map touches only
those rows' pages. So every rank reads its own rows alone, and the set may be larger than memory.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ka_ray.errors import InputError
from ka_ray.storage.cache import fetch_local_copies
from ka_ray.storage.files import atomic_file, make_folder, read_json, remove_tree, write_json

Columns = dict[str, npt.NDArray[Any]]

SHARDS_KEY = "shards"
"""In it the names of the shards that count: a worker that was given up may still write others."""

FEATURES = "features"
"""The folder of images with stacked features and scores."""

IMAGES = "images"
"""The folder of the other images, with scores alone."""

DONE = "done.json"
"""Written last; a folder without it is unfinished."""


def write_shard(folder: Path, columns: Columns) -> int:
    """Write one shard of rows atomically, named by its image ids: writing it twice changes nothing.

    Args:
        folder: Where shards lie.
        columns: ``image_id [n]`` and any other columns ``[n, ...]``, numeric or str.

    Returns:
        Bytes on disk.
    """
    arrays, fields = zip(*(_to_arrow(name, column) for name, column in columns.items()), strict=True)
    ids = np.ascontiguousarray(columns["image_id"])
    name = f"{int(ids[0]):012d}-{hashlib.sha256(ids.tobytes()).hexdigest()[:12]}.arrow"
    table = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    with atomic_file(folder / name) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        return part.stat().st_size


def _to_arrow(name: str, column: npt.NDArray[Any]) -> tuple[pa.Array, pa.Field]:
    if column.dtype.kind in "OUS":
        array = pa.array(column.tolist(), type=pa.string())
        return array, pa.field(name, pa.string())
    column = np.ascontiguousarray(column)
    row_bytes = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
    kind = pa.binary(row_bytes)
    array = pa.FixedSizeBinaryArray.from_buffers(kind, len(column), [None, pa.py_buffer(column)])
    layout = {"dtype": column.dtype.str, "shape": json.dumps(column.shape[1:])}
    return array, pa.field(name, kind, metadata=layout)


def create_shard_folder(folder: Path) -> None:
    """Make an empty folder for shards; what an unfinished attempt left there goes."""
    remove_tree(folder)
    make_folder(folder)


def mark_folder_finished(folder: Path, summary: dict[str, Any]) -> None:
    """Mark a folder of shards as whole; all that lie there count, unless the summary names those that do."""
    write_json(folder / DONE, {SHARDS_KEY: _names(folder, summary)} | summary)


def _names(folder: Path, summary: dict[str, Any]) -> list[str]:
    return summary.get(SHARDS_KEY) or sorted(path.name for path in folder.glob("*.arrow"))


class Store:
    """Finished folders of shards, read by row as one set; of remote ones this node keeps a copy to map.

    Args:
        folders: Each was finished; rows of all of them count, with the columns they have in common.

    Raises:
        FileNotFoundError: A folder was never finished.
        InputError: A shard is damaged.
        ValueError: An image id occurs twice, or there is no row at all.
    """

    def __init__(self, *folders: Path) -> None:
        self.summaries: list[dict[str, Any]] = [read_json(f / DONE) for f in folders]
        parts = zip(folders, self.summaries, strict=True)
        self._shards = [_Shard(path) for f, done in parts for path in fetch_local_copies(f, _names(f, done))]
        if not self._shards:
            raise ValueError(f"no images in {', '.join(map(str, folders))}")
        ids = np.concatenate([shard.columns["image_id"] for shard in self._shards])
        owner = np.repeat(np.arange(len(self._shards)), [len(s.columns["image_id"]) for s in self._shards])
        local = np.concatenate([np.arange(len(s.columns["image_id"])) for s in self._shards])
        order = np.argsort(ids, kind="stable")
        self.image_ids: npt.NDArray[np.int64] = ids[order]
        self._owner, self._local = owner[order], local[order]
        if len(np.unique(ids)) < len(ids):
            raise ValueError(f"{folders} hold {len(ids) - len(np.unique(ids))} image ids twice")

    def __len__(self) -> int:
        """How many images are kept."""
        return len(self.image_ids)

    @property
    def column_names(self) -> list[str]:
        """The columns that every row has."""
        common = set.intersection(*(set(shard.columns) for shard in self._shards))
        return [name for name in self._shards[0].columns if name in common]

    def row_shape(self, column: str) -> tuple[int, ...]:
        """The shape of one row of a column."""
        return self._shards[0].columns[column].shape[1:]

    def gather(
        self,
        columns: Sequence[str],
        rows: npt.NDArray[np.int64],
        draws: npt.NDArray[np.float32] | None = None,
    ) -> Columns:
        """Copy rows out of the shards, whole or at some positions of their maps.

        Args:
            columns: Which columns.
            rows: Row numbers ``[n]``; row i is the image with the i-th smallest id.
            draws: Uniform numbers in [0, 1), ``[n, P]``: each picks one position of a map ``[S, *space]``,
                with replacement.

        Returns:
            column -> ``[n, ...]`` in the order of ``rows``; with draws ``[n P, S]``.
        """
        parts: dict[str, list[npt.NDArray[Any]]] = {column: [] for column in columns}
        owner, local = self._owner[rows], self._local[rows]
        by_owner = np.argsort(owner, kind="stable")
        shards, starts = np.unique(owner[by_owner], return_index=True)
        for shard, places in zip(shards, np.split(by_owner, starts[1:]), strict=True):
            for column in columns:
                values = self._shards[shard].columns[column]
                wanted = local[places]
                picked = values[wanted] if draws is None else _at_positions(values, wanted, draws[places])
                parts[column].append(picked)
        back = np.argsort(by_owner, kind="stable")
        gathered = {column: np.concatenate(part)[back] for column, part in parts.items()}
        if draws is not None:
            return {column: part.reshape(-1, part.shape[-1]) for column, part in gathered.items()}
        return gathered


def _at_positions(
    values: npt.NDArray[Any], rows: npt.NDArray[np.int64], draws: npt.NDArray[np.float32]
) -> npt.NDArray[Any]:
    """Pick positions ``[n, P, S]`` out of maps ``[N, S, *space]`` (of vectors, the one there is)."""
    maps = values.reshape(*values.shape[:2], -1)
    positions = np.minimum((draws * maps.shape[2]).astype(np.int64), maps.shape[2] - 1)
    if maps.shape[2] == 1:
        positions = positions[:, :1]
    picked: npt.NDArray[Any] = maps[rows[:, None], :, positions]
    return picked


class _Shard:
    """One memory-mapped file; ``columns`` are views into it."""

    def __init__(self, path: Path) -> None:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        except (pa.ArrowException, FileNotFoundError) as error:
            raise InputError(
                f"features {path} are damaged ({error}); delete this file and {path.with_name(DONE)}, and "
                "give the same command again: its images alone are read again"
            ) from None
        self.columns = {field.name: _to_numpy(table.column(field.name), field) for field in table.schema}


def _to_numpy(column: pa.ChunkedArray, field: pa.Field) -> npt.NDArray[Any]:
    if pa.types.is_string(field.type):
        return np.asarray(column.to_pylist(), dtype=object)
    shape = json.loads(field.metadata[b"shape"])
    dtype = np.dtype(field.metadata[b"dtype"].decode())
    array = column.chunk(0)
    count = int(np.prod([len(array), *shape]))
    start = array.offset * field.type.byte_width
    return np.frombuffer(array.buffers()[1], dtype, count, start).reshape(len(array), *shape)
