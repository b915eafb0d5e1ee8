"""Parquet files with one encoded image a row."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka_ray.config import ParquetImages
from ka_ray.errors import InputError
from ka_ray.images.sources import Chunk, Encoded, Source
from ka_ray.storage.files import is_remote, open_random_access
from ka_ray.storage.uris import to_path

READ_ROWS = 256


def list_parquet(config: ParquetImages) -> Source:
    """List the row groups of the files, from their footers alone; each is one chunk.

    Reading row groups ourselves gives every image its row number as id, which no rerun changes.

    Raises:
        InputError: No file matches, a file is not Parquet, or a named column is missing.
    """
    paths = [config.path] if config.path.is_file() else sorted(config.path.glob(config.files))
    if not paths:
        raise InputError(f"images.path {config.path}: no file matches images.files = {config.files!r}")
    chunks, first_id = [], 0
    for path in paths:
        footer = _footer(path, config)
        for group in range(footer.num_row_groups):
            num_images = footer.row_group(group).num_rows
            chunks.append(Chunk(first_id, num_images, (str(path), group)))
            first_id += num_images
    names = config.classes if config.label_column is not None else None
    return Source(chunks, ParquetReader(config.image_column, config.label_column, config.classes), names)


def _footer(path: Path, config: ParquetImages) -> Any:
    try:
        with open_random_access(path) as source:
            file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"images.path: {path} is not a Parquet file: {error}") from None
    wanted = {"images.image_column": config.image_column, "images.label_column": config.label_column}
    columns = file.schema_arrow.names
    for key, column in wanted.items():
        if column is not None and column not in columns:
            raise InputError(f"{key}: {path} has no column {column!r}; it has {columns}")
    if config.label_column is not None and config.classes is None:
        kind = file.schema_arrow.field(config.label_column).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise InputError(f"images.classes: column {config.label_column!r} holds {kind}; name its classes")
    return file.metadata


@dataclass(frozen=True)
class ParquetReader:
    """Reads row groups; a callable object, because it must remember the columns and travel to workers."""

    image_column: str
    label_column: str | None
    classes: tuple[str, ...] | None

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
        """Yield the wanted rows of one row group."""
        path, group = chunk.payload
        columns = [self.image_column] + ([self.label_column] if self.label_column else [])
        image_id = chunk.first_id
        for batch in _read(path, group, columns):
            contents = batch.column(0)
            labels = batch.column(1) if self.label_column else None
            for row in range(batch.num_rows):
                if wanted(image_id):
                    label = self._label(labels[row].as_py()) if labels is not None else ""
                    name = f"{path}, row {image_id - chunk.first_id} of row group {group}"
                    yield Encoded(image_id, name, _bytes(contents[row].as_py()), label)
                image_id += 1

    def _label(self, value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if self.classes is None or not 0 <= value < len(self.classes):
            known = 0 if self.classes is None else len(self.classes)
            raise InputError(f"images.classes: label {value} found, but only {known} classes are named")
        return str(self.classes[value])


def _read(path: str, group: int, columns: list[str]) -> Iterator[Any]:
    """Read some columns of one row group in batches; of a remote file no other bytes, in few requests."""
    where = to_path(path)
    try:
        with open_random_access(where) as source:
            file = pq.ParquetFile(source, pre_buffer=is_remote(where))
            yield from file.iter_batches(READ_ROWS, row_groups=[group], columns=columns)
    except (ConnectionError, TimeoutError):
        raise  # the file may well be whole
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"images.path: row group {group} of {path} cannot be read: {error}") from None


def _bytes(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""  # refused by the decoder, counted as unreadable
