"""Read many files of one file system, remote ones with several requests at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ka_ray.storage.files import MAX_PARALLEL_REQUESTS


def read_files(names: Sequence[str]) -> Iterator[bytes | OSError]:
    """Read several files of one file system; remote ones with several requests at a time.

    Args:
        names: Local file names, or URIs of one protocol.

    Yields:
        Each file's content, or the error if it cannot be read, in the order of the names.
    """
    if not any("://" in name for name in names):
        yield from (_read(lambda name: Path(name).read_bytes(), name) for name in names)
        return
    import fsspec

    fs, _ = fsspec.core.url_to_fs(names[0], use_listings_cache=False)
    # Not fs.cat(..., on_error="return"): it takes names such as "photo [1].png" for patterns and drops them.
    # Not fs.cat_ranges: it returns only when all files are read, while here the caller decodes the first ones
    # as the others arrive; and file systems without asynchronous requests (sftp, smb) read one by one.
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        yield from pool.map(lambda name: _read(fs.cat_file, name), names)


def _read(read: Callable[[str], bytes], name: str) -> bytes | OSError:
    try:
        return read(name)
    except OSError as error:
        return error
