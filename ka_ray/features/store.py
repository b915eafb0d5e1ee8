"""Store features on disk as memory-mapped Arrow shards, and read their rows in the order of the image ids.

The format is Arrow IPC instead of Parquet, because a training step gathers random rows of the whole set. A
memory map loads only the pages of those rows. So each rank reads only its own rows, and the set may be larger
than memory.
"""

import errno
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
"""Key in ``done.json`` with the file names of the valid shards. Other files in the folder are ignored,
because a worker that was given up for dead may still write some."""

FEATURES = "features"
"""Name of the folder with the images whose stacked features and scores are stored."""

IMAGES = "images"
"""Name of the folder with images that are stored without features: with scores, or only with labels."""

DONE = "done.json"
"""Name of the file that is written last. A folder without it is unfinished."""


def write_shard(folder: Path, columns: Columns) -> int:
    """Write one shard of rows atomically.

    The file name is derived from the image ids. So a retried task overwrites the shard of the first try
    instead of adding its rows a second time.

    Args:
        folder: Existing folder for the shards.
        columns: Column ``image_id [n]`` and any other columns ``[n, ...]``, numeric or str.

    Returns:
        Size of the file in bytes.
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
    # A row of any shape is stored as one fixed-size binary value, so that numpy can view the file without a
    # copy. Its dtype and shape are kept in the field's metadata.
    column = np.ascontiguousarray(column)
    row_bytes = column.dtype.itemsize * int(np.prod(column.shape[1:], dtype=np.int64))
    row_type = pa.binary(row_bytes)
    array = pa.FixedSizeBinaryArray.from_buffers(row_type, len(column), [None, pa.py_buffer(column)])
    layout = {"dtype": column.dtype.str, "shape": json.dumps(column.shape[1:])}
    return array, pa.field(name, row_type, metadata=layout)


def create_shard_folder(folder: Path) -> None:
    """Create an empty folder for shards. Whatever an unfinished attempt left there is removed."""
    remove_tree(folder)
    make_folder(folder)


def mark_folder_finished(folder: Path, summary: dict[str, Any]) -> None:
    """Mark a folder of shards as finished.

    Args:
        folder: Folder with the shards.
        summary: JSON content of ``done.json``. If it has no key ``shards``, all shards in the folder are
            valid.
    """
    names = summary.get(SHARDS_KEY) or sorted(path.name for path in folder.glob("*.arrow"))
    write_json(folder / DONE, {SHARDS_KEY: names} | summary)


class Store:
    """Rows of one or more finished folders of shards, sorted by image id.

    Shards on remote storage are first copied to this node, because only local files can be memory-mapped.

    Args:
        folders: Finished folders. The store has the rows of all of them, with the columns they all have.

    Attributes:
        summaries: Content of ``done.json`` per folder.
        image_ids: Image id of each row, sorted; ``[n]``.

    Raises:
        FileNotFoundError: A folder is not finished.
        InputError: A shard is damaged, the folders have no rows, or an image id occurs twice.
    """

    def __init__(self, *folders: Path) -> None:
        self.summaries: list[dict[str, Any]] = [read_done(f) for f in folders]
        parts = zip(folders, self.summaries, strict=True)
        self._shards = [_Shard(path) for f, done in parts for path in fetch_local_copies(f, done[SHARDS_KEY])]
        if not self._shards:
            raise InputError(_describe_empty(folders, self.summaries))
        ids = np.concatenate([shard.columns["image_id"] for shard in self._shards])
        # For row i of the sorted set: the number of its shard, and its row number within that shard.
        shard_of_row = np.repeat(
            np.arange(len(self._shards)), [len(s.columns["image_id"]) for s in self._shards]
        )
        row_in_shard = np.concatenate([np.arange(len(s.columns["image_id"])) for s in self._shards])
        order = np.argsort(ids, kind="stable")
        self.image_ids: npt.NDArray[np.int64] = ids[order]
        self._shard_of_row, self._row_in_shard = shard_of_row[order], row_in_shard[order]
        if len(np.unique(ids)) < len(ids):
            names = ", ".join(map(str, folders))
            raise InputError(f"{names} contain {len(ids) - len(np.unique(ids))} image ids twice")

    def _keep(self, rows: npt.NDArray[np.bool_]) -> None:
        """Forget all rows but those of a mask ``[n]``; for stores that leave images out."""
        self.image_ids = self.image_ids[rows]
        self._shard_of_row, self._row_in_shard = self._shard_of_row[rows], self._row_in_shard[rows]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns that all folders have."""
        common = set.intersection(*(set(shard.columns) for shard in self._shards))
        return [name for name in self._shards[0].columns if name in common]

    def row_shape(self, column: str) -> tuple[int, ...]:
        """Return the shape of one row of a column."""
        return self._shards[0].columns[column].shape[1:]

    def gather(
        self,
        columns: Sequence[str],
        rows: npt.NDArray[np.int64],
        draws: npt.NDArray[np.float32] | None = None,
    ) -> Columns:
        """Copy rows out of the shards: whole rows, or some positions of their maps.

        Args:
            columns: Names of the columns to read.
            rows: Row numbers ``[n]``. Row i is the image with the i-th smallest id.
            draws: Uniform random numbers in [0, 1), ``[n, P]``. Each one selects one position of a map
                ``[S, *space]``, with replacement. None: read whole rows.

        Returns:
            Per column the values in the order of ``rows``: ``[n, ...]`` for whole rows, ``[n P, S]`` for
            positions of maps, ``[n, S]`` for vectors, which have only one position.
        """
        parts: dict[str, list[npt.NDArray[Any]]] = {column: [] for column in columns}
        shard_of_row, row_in_shard = self._shard_of_row[rows], self._row_in_shard[rows]
        # Group the rows by shard, so that numpy reads all wanted rows of a shard in one call.
        by_shard = np.argsort(shard_of_row, kind="stable")
        shards, starts = np.unique(shard_of_row[by_shard], return_index=True)
        for shard, indices in zip(shards, np.split(by_shard, starts[1:]), strict=True):
            for column in columns:
                values = self._shards[shard].columns[column]
                wanted = row_in_shard[indices]
                part = values[wanted] if draws is None else _at_positions(values, wanted, draws[indices])
                parts[column].append(part)
        to_given_order = np.argsort(by_shard, kind="stable")
        gathered = {column: np.concatenate(part)[to_given_order] for column, part in parts.items()}
        if draws is not None:
            return {column: part.reshape(-1, part.shape[-1]) for column, part in gathered.items()}
        return gathered


def read_done(folder: Path) -> dict[str, Any]:
    """Read what a finished folder says of itself: the names of its shards, and the summary of the pass.

    Args:
        folder: A folder of shards.

    Raises:
        InputError: The file is damaged.
    """
    done = read_json(folder / DONE)
    names = done.get(SHARDS_KEY) or sorted(path.name for path in folder.glob("*.arrow"))
    if not isinstance(names, list) or not all(isinstance(n, str) and "/" not in n and n for n in names):
        raise InputError(f"{folder / DONE} is damaged: {SHARDS_KEY} is no list of file names")
    return done | {SHARDS_KEY: names}


def _describe_empty(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> str:
    unreadable = [name for done in summaries for name in done.get("unreadable", [])]
    why = f"none of the images could be read, for example {unreadable[0]}" if unreadable else "no shards"
    return f"no images in {', '.join(map(str, folders))}: {why}"


def _at_positions(
    values: npt.NDArray[Any], rows: npt.NDArray[np.int64], draws: npt.NDArray[np.float32]
) -> npt.NDArray[Any]:
    """Select positions ``[n, P, S]`` of maps ``[N, S, *space]``; of vectors, their only position."""
    maps = values.reshape(*values.shape[:2], -1)
    # In float32 a draw just below 1 can be rounded up to the number of positions, hence the minimum.
    positions = np.minimum((draws * maps.shape[2]).astype(np.int64), maps.shape[2] - 1)
    if maps.shape[2] == 1:
        # Drawing the only position P times would only repeat the same row.
        positions = positions[:, :1]
    picked: npt.NDArray[Any] = maps[rows[:, None], :, positions]
    return picked


class _Shard:
    """One memory-mapped Arrow file; ``columns`` are numpy views into it."""

    def __init__(self, path: Path) -> None:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
            table.validate(full=True)  # else damaged positions of text would be read outside of the file
            self.columns = {field.name: _to_numpy(table.column(field.name), field) for field in table.schema}
            if (ids := self.columns["image_id"]).dtype != np.int64 or ids.ndim != 1:
                raise ValueError("its image ids are no integers")
        except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
                raise  # the disk failed; Arrow's own OSErrors, about the content, have no number
            raise InputError(
                f"features {path} are damaged ({error}). Delete this file and {path.with_name(DONE)}, then "
                "run the same command again: only the images of this file are read again"
            ) from None


def _to_numpy(column: pa.ChunkedArray, field: pa.Field) -> npt.NDArray[Any]:
    if pa.types.is_string(field.type):
        return np.asarray(column.to_pylist(), dtype=object)
    shape = json.loads(field.metadata[b"shape"])
    dtype = np.dtype(field.metadata[b"dtype"].decode())
    array = column.chunk(0)
    count = int(np.prod([len(array), *shape]))
    start = array.offset * field.type.byte_width
    return np.frombuffer(array.buffers()[1], dtype, count, start).reshape(len(array), *shape)
