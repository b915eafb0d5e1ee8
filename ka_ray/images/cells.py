"""Labels and images as tables and lists hold them: names, integers, encoded bytes, paths."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from ka_ray.config.class_names import normalise
from ka_ray.errors import InputError
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.file_names import printable
from ka_ray.storage.read_errors import is_fault_of_machine, to_user_error

TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
BINARY = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
    pa.types.is_binary_view,
)
"""Checks of the types of columns that hold text, and of those that hold bytes."""


def to_label(value: Any, classes: Sequence[str] | None = None) -> str:
    """Return the class name of a label.

    Args:
        value: A class name, an integer into `classes`, or None if the image has no label. A whole number may
            be a float, and NaN is no label: so pandas writes a column of integers with missing values.
        classes: Names of the classes; None if labels are names.

    Returns:
        The name, composed as names of a config are; empty if there is no label. Equal names are one object,
        because a list of a million images has each name very often.

    Raises:
        InputError: An integer is beyond the classes, or the label is neither text nor an integer.
    """
    if isinstance(value, float) and (value.is_integer() or math.isnan(value)):
        value = None if math.isnan(value) else int(value)
    if value is None:
        return ""
    if isinstance(value, str):
        return sys.intern(normalise(printable(value)))
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(
            f"images.label_column: label {repr(value)[:80]} is a {type(value).__name__}; labels are class "
            "names, or integers into images.classes"
        )
    if classes is None or not 0 <= value < len(classes):
        known = 0 if classes is None else len(classes)
        raise InputError(
            f"images.classes: label {value} found, but only {known} classes are named (counted from 0)"
        )
    return str(classes[value])


def to_owner(value: Any) -> str:
    """Return the name of the teacher that a cell of a column of owners names.

    Args:
        value: A name, as text or as bytes of UTF-8; None or empty if the owner is not known.

    Raises:
        InputError: The value is not text.
    """
    text = value.decode(errors="replace") if isinstance(value, bytes) else value
    if text is not None and not isinstance(text, str):
        raise InputError(
            f"images.owner_column: {value!r} is a {type(value).__name__}; owners are names of teachers"
        )
    return sys.intern(text or "")


def check_label_type(
    column: str, kind: pa.DataType, named: bool, where: object, encoded: bool = False
) -> None:
    """Check the type of a column of labels before the first row is read.

    Args:
        column: Name of the column.
        kind: Its type.
        named: Whether `images.classes` names the classes into which integers are indices.
        where: The file, for the error message.
        encoded: Whether text may be stored as its bytes, as some programs do.

    Raises:
        InputError: The column holds neither text nor numbers, or numbers without `images.classes`.
    """
    kind = _value_type(kind)
    text = _is_any(kind, TEXT) or (encoded and _is_any(kind, BINARY))
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (text or number or pa.types.is_null(kind)):
        raise InputError(
            f"images.label_column: column {column!r} of {where} holds {kind}; labels are text (class names), "
            "or integers into images.classes"
        )
    # Numbers are positions in a list of names that only the user knows.
    if not named and not text:
        raise InputError(
            f"images.classes: column {column!r} of {where} holds {kind}, not text; set images.classes to the "
            "list of class names that these labels are indices into"
        )


def check_column_type(key: str, column: str, kind: pa.DataType, where: object) -> None:
    """Check the type of a column of images, paths or owners before the first row is read.

    Args:
        key: The config key that names the column, without ``images.``.
        column: Name of the column.
        kind: Its type.
        where: The file, for the error message.

    Raises:
        InputError: The column cannot hold what the key says.
    """
    kind = _value_type(kind)
    where = f"column {column!r} of {where}"
    if key == "image_column" and _is_any(kind, TEXT):
        advice = f"if these are paths, set source to list, and path_column to {column}"
        raise InputError(f"images.{key}: {where} holds text, not images; {advice}")
    if key == "path_column" and pa.types.is_struct(kind):
        advice = f"set source to parquet, and image_column to {column}"
        raise InputError(f"images.{key}: {where} holds images, not paths; {advice}")
    if key == "image_column":
        parts = {field.name for field in kind} if pa.types.is_struct(kind) else set[str]()
        allowed, wanted = bool(parts & {"bytes", "path"}), "images (binary, or a struct of bytes and path)"
    else:
        allowed, wanted = _is_any(kind, TEXT), "text"
    if not (allowed or _is_any(kind, BINARY) or pa.types.is_null(kind)):
        raise InputError(f"images.{key}: {where} holds {kind}, not {wanted}")


def _value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column; pandas stores categories as indices into a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_any(kind: pa.DataType, checks: Sequence[Callable[[pa.DataType], bool]]) -> bool:
    return any(check(kind) for check in checks)


def text_to_label(text: str, classes: Sequence[str] | None) -> str:
    """Return the class name of a label that is written as text.

    Args:
        text: A class name, or a whole number if `classes` are given; empty if the image has no label.
        classes: Names of the classes; None if labels are names.

    Raises:
        InputError: The text is no integer although `classes` are given, or an integer beyond them.
    """
    if not text or classes is None:
        return to_label(text)
    try:
        number = int(text.removesuffix(".0"))  # pandas writes integers with missing values as floats
    except ValueError:
        raise InputError(
            f"images.classes: label {text[:80]!r} is no integer; leave out images.classes if labels are names"
        ) from None
    return to_label(number, classes)


def read_cells(cells: Sequence[Any], folder: str) -> Iterator[bytes]:
    """Yield the encoded image of each cell of an image column.

    Args:
        cells: Encoded bytes, or Hugging Face's ``{bytes, path}``, in which bytes may be None: then the file
            at the path is read.
        folder: Where relative paths count from.

    Yields:
        The encoded image; empty if there is none, so that the decoder counts it as unreadable.

    Raises:
        ConnectionError: The network failed, not the file; the caller may try again.
        TimeoutError: The network did not answer; the caller may try again.
        ReadError: The machine or its disk could not read a file, not even when tried again.
        InputError: The permission to read a file is missing.
    """
    paths = [_path_of(cell, folder) for cell in cells]
    files = read_files([path for path in paths if path])
    for cell, path in zip(cells, paths, strict=True):
        content = (
            or_raise(next(files), path) if path else cell.get("bytes") if isinstance(cell, dict) else cell
        )
        yield content if isinstance(content, bytes) else b""


def _path_of(cell: Any, folder: str) -> str:
    """Return the file to read for a cell; empty if the cell holds the image itself, or nothing."""
    is_path = isinstance(cell, dict) and cell.get("bytes") is None and isinstance(cell.get("path"), str)
    return locate(cell["path"], folder) if is_path and cell["path"] else ""


def locate(path: str, folder: str) -> str:
    """Return where a path of a list or table leads: it may be absolute, a URI, or relative to a folder."""
    return path if os.path.isabs(path) or "://" in path else f"{folder}/{path}"  # noqa: PTH117


def or_raise(content: bytes | OSError, place: str) -> bytes:
    """Return the content of a file that was read; empty if the file is missing or damaged.

    Args:
        content: What :func:`ka_ray.storage.batch_read.read_files` yielded: the content, or the error of the
            last attempt.
        place: What was read, for the message.

    Raises:
        ConnectionError: The network failed; the file itself may be fine, and the chunk is read again.
        TimeoutError: The network did not answer.
        ReadError: The machine or its disk cannot read the file, which says nothing about the image.
        InputError: Permissions are missing.
    """
    if isinstance(content, ConnectionError | TimeoutError):
        raise content
    if isinstance(content, OSError) and is_fault_of_machine(content):
        raise to_user_error(content, place)
    return b"" if isinstance(content, OSError) else content
