"""The image source of files whose paths are listed in a CSV, TSV, Parquet or text file.

Not ``ray.data.read_csv``: the list is small beside its images, and is needed as a whole before anything
starts, to count the images and to name the classes. pyarrow, which Ray Data uses as well, reads it here. An
image's id is its row in the list, so it is the same in every run.
"""

import io
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ka_ray.config import ListImages
from ka_ray.errors import InputError
from ka_ray.images.cells import (
    check_column_type,
    check_label_type,
    locate,
    text_to_label,
    to_label,
    to_owner,
)
from ka_ray.images.listed_files import (
    identify_listed_files,
    labels_of_files,
    read_listed_files,
    split_into_chunks,
)
from ka_ray.images.sources import Source
from ka_ray.storage.file_names import measure_files
from ka_ray.storage.files import read_bytes
from ka_ray.storage.read_errors import read_again, to_user_error
from ka_ray.storage.uris import CREDENTIALS_ADVICE, refuse_credentials

DELIMITERS = {".csv": ",", ".tsv": "\t"}

SUFFIXES = (*DELIMITERS, ".parquet", ".txt")


def list_files_of_list(config: ListImages) -> Source:
    """List the image files that a list names, in its order.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: The list cannot be read or is empty, lacks a column, or has a label beyond the classes.
    """
    paths, labels, owners = _read_list(config)
    if not paths:
        raise InputError(f"images.path: the list {config.path} is empty")
    folder = str(config.root or config.path.parent)
    entries = list[tuple[str, ...]]()
    for row, (path, *texts) in enumerate(zip(paths, labels, *owners, strict=True)):
        if not path:
            raise InputError(f"images.path_column: row {row} of {config.path} (counted from 0) has no path")
        if "://" in path:
            refuse_credentials(path, CREDENTIALS_ADVICE)
        entries.append((locate(path, folder), *texts))
    chunks = split_into_chunks(entries, measure_files([path for path, *_ in entries]))
    names = _class_names(config, labels)
    return Source(chunks, read_listed_files, names, "", labels_of_files, identify_listed_files)


def _class_names(config: ListImages, labels: Iterable[str]) -> tuple[str, ...] | None:
    if config.label_column is None:
        return None
    return config.classes or tuple(sorted({label for label in labels if label}))


def _read_list(config: ListImages) -> tuple[list[str], list[str], list[list[str]]]:
    """Read a list.

    Returns:
        The paths as they are written there; the class name of each, "" if it has none; and, in a list of one
        item, the owner of each, if the list has owners.
    """
    suffix = config.path.suffix.lower()
    if suffix not in SUFFIXES or not config.path.is_file():
        raise InputError(f"images.path: {config.path} must be a file that ends in {', '.join(SUFFIXES)}")
    try:
        content = read_again(lambda: read_bytes(config.path))
    except OSError as error:
        raise to_user_error(error, config.path) from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"images.path: {config.path} is UTF-16; save it as UTF-8")
    if suffix == ".txt":
        return _read_lines(content, config)
    try:
        table = _read_parquet(content, config) if suffix == ".parquet" else _read_csv(content, config)
    except InputError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:  # the content is in memory already
        raise InputError(f"images.path: the list {config.path} cannot be read: {error}") from None
    paths = [_decode(path) for path in _values(table[config.path_column])]
    owners = (
        [] if config.owner_column is None else [[to_owner(v) for v in _values(table[config.owner_column])]]
    )
    if config.label_column is None:
        return paths, [""] * len(paths), owners
    # CSV has no types: there, every label is text (here bytes), also an integer.
    labels = [
        text_to_label(_decode(label), config.classes)
        if isinstance(label, bytes)
        else to_label(label, config.classes)
        for label in _values(table[config.label_column])
    ]
    return paths, labels, owners


def _read_lines(content: bytes, config: ListImages) -> tuple[list[str], list[str], list[list[str]]]:
    for key in ("label_column", "owner_column"):
        if getattr(config, key) is not None:
            raise InputError(f"images.{key}: {config.path} is a text file, which has no columns")
    lines = [_decode(line) for line in content.removeprefix(b"\xef\xbb\xbf").splitlines() if line]
    return lines, [""] * len(lines), []


def _read_csv(content: bytes, config: ListImages) -> Any:
    parse = pyarrow.csv.ParseOptions(
        delimiter=DELIMITERS[config.path.suffix.lower()], newlines_in_values=True
    )
    if not content.strip():
        raise InputError(f"images.path: the list {config.path} is empty")
    header = content.split(b"\n", 1)[0] + b"\n"
    columns = _check_columns(
        pyarrow.csv.read_csv(io.BytesIO(header), parse_options=parse).column_names, config
    )
    # As bytes: types are not guessed ("007" stays what it is), and paths may be of any encoding.
    convert = pyarrow.csv.ConvertOptions(
        include_columns=columns, column_types={name: pa.binary() for name in columns}
    )
    return pyarrow.csv.read_csv(io.BytesIO(content), parse_options=parse, convert_options=convert)


def _read_parquet(content: bytes, config: ListImages) -> Any:
    file = pq.ParquetFile(io.BytesIO(content))
    columns = _check_columns(file.schema_arrow.names, config)
    kinds = {column: file.schema_arrow.field(column).type for column in columns}
    check_column_type("path_column", config.path_column, kinds[config.path_column], config.path)
    if config.owner_column is not None:
        check_column_type("owner_column", config.owner_column, kinds[config.owner_column], config.path)
    if config.label_column is not None:
        kind, named = kinds[config.label_column], config.classes is not None
        check_label_type(config.label_column, kind, named, config.path, encoded=True)
    table = file.read(columns=columns)
    table.validate(full=True)  # text that is no UTF-8 would raise only where it is used
    return table


def _check_columns(names: list[str], config: ListImages) -> list[str]:
    """Return the columns to read: that of the paths and, if there are labels or owners, theirs."""
    keys = {key: getattr(config, key) for key in ("path_column", "label_column", "owner_column")}
    for key, column in keys.items():
        if column is not None and names.count(column) != 1:
            found = "no column" if column not in names else "several columns"
            header = "" if config.path.suffix == ".parquet" else ", by its first line, the header"
            raise InputError(
                f"images.{key}: the list {config.path} has {found} {column!r}; it has {names}{header}"
            )
    return [*dict.fromkeys(column for column in keys.values() if column is not None)]


def _values(column: Any) -> Iterator[Any]:
    """Yield the values of a column; chunk by chunk, because as Python objects they need more memory."""
    for chunk in column.chunks:
        yield from chunk.to_pylist()


def _decode(value: Any) -> str:
    """Return a path or a label as text; as Python does it for file names, bytes may be of any encoding."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value) if value is not None else ""
