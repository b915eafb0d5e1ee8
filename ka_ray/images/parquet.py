"""The image source of Parquet files with one encoded image per row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ka_ray.config import ParquetImages
from ka_ray.errors import InputError
from ka_ray.images.cells import check_column_type, check_label_type, read_cells, to_label, to_owner
from ka_ray.images.hidden_files import find_files
from ka_ray.images.sources import Chunk, EncodedImage, Source, list_no_labels
from ka_ray.storage.files import is_remote, open_random_access
from ka_ray.storage.read_errors import is_fault_of_machine, iterate_again, read_again, to_user_error
from ka_ray.storage.uris import to_path

BATCH_ROWS = 256
"""Number of rows that are in memory at the same time: a row group can have a million."""


def list_parquet(config: ParquetImages) -> Source:
    """List the row groups of the files, each as one chunk; only the files' footers are read.

    This package reads row groups itself instead of through ``ray.data.read_parquet`` so that an image's id is
    its row number, which stays the same in every run.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: No file matches, a file is not Parquet, or a column that the config names is missing.
    """
    paths, notes = find_files(config.path, config.files)
    chunks, first_id = [], 0
    for path in paths:
        footer = _read_footer(path, config)
        for group in range(footer.num_row_groups):
            found = footer.row_group(group)
            num_images, num_bytes = found.num_rows, found.total_byte_size
            chunks.append(Chunk(first_id, num_images, (str(path), group), (num_bytes,)))
            first_id += num_images
    if not first_id:
        raise InputError(f"images.path: {config.path} has no rows")
    names = config.classes if config.label_column is not None else None
    reader = ParquetReader(config.image_column, config.label_column, config.classes, config.owner_column)
    return Source(chunks, reader, names, "; ".join(notes), reader.list_labels)


def _read_footer(path: Path, config: ParquetImages) -> Any:
    """Return the metadata of a file after checking that it has the columns that the config names."""
    try:
        file = read_again(lambda: _open_footer(path))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_fault_of_machine(error):
            raise to_user_error(error, path) from None
        raise InputError(f"images.path: {path} is not a Parquet file: {error}") from None
    keys = ("image_column", "label_column", "owner_column")
    columns = file.schema_arrow.names
    for key, column in {key: getattr(config, key) for key in keys}.items():
        if column is not None and columns.count(column) != 1:
            found = "several columns" if column in columns else "no column"
            raise InputError(f"images.{key}: {path} has {found} {column!r}; it has {columns}")
        if column is not None and key != "label_column":
            check_column_type(key, column, file.schema_arrow.field(column).type, path)
    if config.label_column is not None:
        kind = file.schema_arrow.field(config.label_column).type
        check_label_type(config.label_column, kind, config.classes is not None, path)
    return file.metadata


def _open_footer(path: Path) -> Any:
    with open_random_access(path) as source:
        return pq.ParquetFile(source)


@dataclass(frozen=True)
class ParquetReader:
    """Reads row groups; an object and not a closure, because it is pickled for workers.

    Attributes:
        image_column: Name of the column with the encoded images.
        label_column: Name of the column with the labels; None if the images are unlabelled.
        classes: Names of the classes, into which integer labels are indices; None if the labels are names.
        owner_column: Name of the column with the owners; None if they are not known.
    """

    image_column: str
    label_column: str | None
    classes: tuple[str, ...] | None
    owner_column: str | None = None

    def list_labels(self, chunks: Sequence[Chunk]) -> list[str]:
        """Return the labels of row groups; of their columns, only that of the labels is read."""
        if self.label_column is None:
            return list_no_labels(chunks)
        return [
            to_label(value.as_py(), self.classes)
            for path, group in (chunk.payload for chunk in chunks)
            for batch in _read_row_group(path, group, [self.label_column])
            for value in batch.column(0)
        ]

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted rows of one row group; relative paths count from the folder of the file."""
        path, group = chunk.payload
        texts = [column for column in (self.label_column, self.owner_column) if column]
        # Every row is counted, also those that are not wanted: a row's id is its number in the source.
        image_id = chunk.first_id
        for batch in _read_row_group(path, group, [*dict.fromkeys([self.image_column, *texts])]):
            rows = [row for row in range(batch.num_rows) if wanted(image_id + row)]
            contents = read_cells(
                [batch.column(self.image_column)[row].as_py() for row in rows], path.rpartition("/")[0]
            )
            for row, content in zip(rows, contents, strict=True):
                label, owner = (
                    batch.column(column)[row].as_py() if column else None
                    for column in (self.label_column, self.owner_column)
                )
                name = f"{path}, row {image_id + row - chunk.first_id} of row group {group}"
                yield EncodedImage(
                    image_id + row, name, content, to_label(label, self.classes), to_owner(owner)
                )
            image_id += batch.num_rows


def _read_row_group(path: str, group: int, columns: list[str]) -> Iterator[Any]:
    """Yield some columns of one row group in batches; of a remote file, only these bytes are fetched."""
    where = to_path(path)

    def read() -> Iterator[Any]:
        with open_random_access(where) as source:
            # Pre-buffering joins the ranges of the columns into few requests, which only pays off remotely.
            file = pq.ParquetFile(source, pre_buffer=is_remote(where))
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                batch.validate(full=True)  # text that is no UTF-8 would raise only where it is used
                yield batch

    try:
        yield from iterate_again(read)
    except (ConnectionError, TimeoutError):
        raise  # the file itself may be fine: the chunk is read again
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_fault_of_machine(error):
            raise to_user_error(error, f"row group {group} of {path}") from None
        raise InputError(f"images.path: row group {group} of {path} cannot be read: {error}") from None
