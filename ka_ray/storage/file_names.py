"""List the names of the files in a folder, and print names that are not UTF-8."""

import os
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from ka_ray.errors import InputError
from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, get_filesystem, is_remote

MEASURED_FILES = 1000
"""Number of files that a thread asks the size of at a time."""


def list_files(folder: Path, suffixes: Set[str] = frozenset()) -> list[str]:
    """List all files below a folder, in its subfolders, too; links are followed.

    Args:
        folder: A local or remote folder.
        suffixes: Lower-case suffixes such as ``.png``; other files are not listed. Empty: all files.

    Returns:
        Paths relative to the folder, sorted folder by folder (``a/z`` comes before ``a-b/c``).

    Raises:
        InputError: A local folder cannot be listed.

    Example:
        >>> list_files(Path(__file__).parent, {".py"})[:2]
        ['__init__.py', 'batch_read.py']
    """

    def wanted(name: str) -> bool:
        return not suffixes or PurePosixPath(name).suffix.lower() in suffixes

    if not is_remote(folder):
        return [name for name in _walk(str(folder), "") if wanted(name)]
    fs, root = get_filesystem(folder)
    names = [name[len(root.rstrip("/")) + 1 :] for name in fs.find(root) if wanted(name)]
    return sorted(names, key=_folder_order)


def list_files_with_sizes(folder: Path) -> dict[str, int]:
    """List all files below a folder as :func:`list_files` does: name -> size in bytes.

    Args:
        folder: A local or remote folder. A remote one is listed once: its list has the sizes.

    Raises:
        InputError: A local folder cannot be listed.
    """
    if not is_remote(folder):
        names = list_files(folder)
        return dict(zip(names, measure_files([f"{folder}/{name}" for name in names]), strict=True))
    fs, root = get_filesystem(folder)
    found = fs.find(root, detail=True)
    sizes = {name[len(root.rstrip("/")) + 1 :]: info.get("size") for name, info in found.items()}
    known = {name: -1 if size is None else int(size) for name, size in sizes.items()}
    return {name: known[name] for name in sorted(known, key=_folder_order)}


def measure_files(names: Sequence[str]) -> list[int]:
    """Return the size of each file in bytes; -1 if it is missing.

    Args:
        names: Local file names, or URIs, whose size is given as -1: each would take a request.
    """
    # In threads, because a network file system answers slowly, but many at once.
    parts = [names[i : i + MEASURED_FILES] for i in range(0, len(names), MEASURED_FILES)]
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        return [size for sizes in pool.map(lambda part: [*map(_measure, part)], parts) for size in sizes]


def _measure(name: str) -> int:
    try:
        return -1 if "://" in name else os.stat(name).st_size  # noqa: PTH116  # pathlib takes twice as long
    except OSError:
        return -1  # it is counted as unreadable, under its name, when it is read


def _folder_order(name: str) -> str:
    # "\0" sorts before every other character, so this is the order of the lists of a name's parts.
    return name.replace("/", "\0")


def _walk(folder: str, prefix: str) -> Iterator[str]:
    """Yield the names of all files below a local folder, in the order of :func:`list_files`.

    ``os.scandir`` and not ``os.walk``: it knows without another system call whether an entry is a file, and
    the names need not be sorted as a whole.

    Args:
        folder: The folder.
        prefix: What the names begin with: empty, or the path from the first folder to this one, and a slash.
    """
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:  # leaving the folder out would change which images a run uses
        raise InputError(f"{printable(folder)} cannot be listed: {error.strerror}") from None
    here = f"{os.path.realpath(folder)}/"
    for entry in entries:
        if entry.is_file():  # not a broken link, a socket or the like
            yield prefix + entry.name
        # A link to a folder above would be followed for ever.
        elif entry.is_dir() and not here.startswith(f"{os.path.realpath(entry.path)}/"):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")


def printable(name: str) -> str:
    """Return a file name as text that can be printed and stored: bytes that are not UTF-8 become ``\\xe9``.

    Python keeps such bytes of a name as surrogates, which no UTF-8 file, terminal or Arrow column accepts.

    Example:
        >>> printable(os.fsdecode(b"caf\\xe9.png")) == "caf\\\\xe9.png"
        True
    """
    return name if name.isprintable() else os.fsencode(name).decode("utf-8", "backslashreplace")
