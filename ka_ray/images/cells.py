"""Labels and images as tables and lists hold them: names, integers, encoded bytes, paths."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ka_ray.config.class_names import normalise
from ka_ray.errors import InputError
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.file_names import printable
from ka_ray.storage.read_errors import is_fault_of_machine, to_user_error


def to_label(value: Any, classes: Sequence[str] | None = None) -> str:
    """Return the class name of a label.

    Args:
        value: A class name, an integer into `classes`, or None if the image has no label.
        classes: Names of the classes; None if labels are names.

    Returns:
        The name, composed as names of a config are; empty if there is no label. Equal names are one object,
        because a list of a million images has each name very often.

    Raises:
        InputError: An integer is beyond the classes, or the label is neither text nor an integer.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return sys.intern(normalise(printable(value)))
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(
            f"images.label_column: label {value!r} is a {type(value).__name__}; labels are class names, or "
            "integers into images.classes"
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


def text_to_label(text: str, classes: Sequence[str] | None) -> str:
    """Return the class name of a label that is written as text.

    Args:
        text: A class name, or an integer if `classes` are given; empty if the image has no label.
        classes: Names of the classes; None if labels are names.

    Raises:
        InputError: The text is no integer although `classes` are given, or an integer beyond them.
    """
    if not text or classes is None:
        return to_label(text)
    try:
        number = int(text)
    except ValueError:
        raise InputError(
            f"images.classes: label {text!r} is no integer; leave out images.classes if labels are names"
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
