"""Read many files of one file system; remote files are read with several requests at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ka_ray.storage.files import MAX_PARALLEL_REQUESTS


def read_files(names: Sequence[str], num_bytes: int | None = None) -> Iterator[bytes | OSError]:
    """Read many files of one file system; remote files are read with several requests at a time.

    Args:
        names: Local file names, or URIs that all have the same protocol.
        num_bytes: Read only so many bytes from the beginning of each file; None: all.

    Yields:
        For each name, in order: the file's content, or the error if the file cannot be read.
    """
    if not any("://" in name for name in names):
        yield from (_read(lambda name: _read_local(name, num_bytes), name) for name in names)
        return
    import fsspec

    fs, _ = fsspec.core.url_to_fs(names[0], use_listings_cache=False)
    # fs.cat(..., on_error="return") would treat a name such as "photo [1].png" as a glob pattern and drop it.
    # fs.cat_ranges would return only when all files are read, but the caller decodes the first files while
    # the others are read. On file systems without asynchronous requests (sftp, smb), it reads one by one.
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        yield from pool.map(lambda name: _read(lambda n: fs.cat_file(n, end=num_bytes), name), names)


def _read_local(name: str, num_bytes: int | None) -> bytes:
    with Path(name).open("rb") as file:
        return file.read(-1 if num_bytes is None else num_bytes)


def _read(read: Callable[[str], bytes], name: str) -> bytes | OSError:
    try:
        return read(name)
    except OSError as error:
        return error
