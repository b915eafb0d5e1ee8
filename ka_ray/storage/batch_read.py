"""Read many files, or many ranges of one; remote files are read with several requests at a time."""

import errno
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ka_ray.storage.files import MAX_PARALLEL_REQUESTS
from ka_ray.storage.read_errors import read_again


def read_files(names: Sequence[str], num_bytes: int | None = None) -> Iterator[bytes | OSError]:
    """Read many files; remote files are read with several requests at a time.

    Args:
        names: Local file names, or URIs; protocols and hosts may differ.
        num_bytes: Read only so many bytes from the beginning of each file; None: all.

    Yields:
        For each name, in order: the file's content, or the error if the file cannot be read. What is no fault
        of the file was tried again before; see :mod:`ka_ray.storage.read_errors`.
    """
    if not any("://" in name for name in names):
        yield from (_read(lambda name: _read_local(name, 0, num_bytes), name) for name in names)
        return
    systems = {server: _open_filesystem(server) for server in {_server(name) for name in names} - {""}}

    def read(name: str) -> bytes:
        if not _server(name):
            return _read_local(name, 0, num_bytes)
        content: bytes = systems[_server(name)].cat_file(name, end=num_bytes)
        return content

    # fs.cat(..., on_error="return") would treat a name such as "photo [1].png" as a glob pattern and drop it.
    # fs.cat_ranges would return only when all files are read, but the caller decodes the first files while
    # the others are read. On file systems without asynchronous requests (sftp, smb), it reads one by one.
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        yield from pool.map(lambda name: _read(read, name), names)


def read_ranges(name: str, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes | OSError]:
    """Read many ranges of one file; of a remote file with several requests at a time.

    Args:
        name: A local file name, or a URI.
        ranges: Position of the first byte and number of bytes, of each range.

    Yields:
        For each range, in order: its bytes (fewer if the file ends before), or the error if it cannot be
        read, as in :func:`read_files`.
    """
    if "://" not in name:
        yield from (_read(lambda part: _read_local(name, *part), part) for part in ranges)
        return
    fs = _open_filesystem(name)

    def read(part: tuple[int, int]) -> bytes:
        start, num_bytes = part
        content: bytes = fs.cat_file(name, start=start, end=start + num_bytes) if num_bytes else b""
        return content

    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        yield from pool.map(lambda part: _read(read, part), ranges)


def _server(name: str) -> str:
    """Return protocol and host (or bucket) of a URI, which choose its file system; empty for a local name."""
    return "/".join(name.split("/", 3)[:3]) if "://" in name else ""


def _open_filesystem(name: str) -> Any:
    import fsspec

    return fsspec.core.url_to_fs(name, use_listings_cache=False)[0]


def _read_local(name: str, start: int, num_bytes: int | None) -> bytes:
    path = Path(name)
    if path.is_fifo():  # opening it would wait for ever for somebody to write into it
        raise OSError(errno.EINVAL, "is a pipe and no file", name)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(-1 if num_bytes is None else num_bytes)


def _read(read: Callable[[Any], bytes], what: Any) -> bytes | OSError:
    """Return what a function reads, or the error of its last attempt."""
    try:
        return read_again(lambda: _with_os_errors(read, what))
    except OSError as error:
        return error


def _with_os_errors(read: Callable[[Any], bytes], what: Any) -> bytes:
    """Read, and turn errors that are no OSError into one, such as those of the client of an HTTP server."""
    try:
        return read(what)
    except OSError:
        raise
    except ValueError as error:  # a name with a zero byte; some file systems say so of other names, too
        raise OSError(errno.EINVAL, str(error), str(what)) from None
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}", str(what)) from error
