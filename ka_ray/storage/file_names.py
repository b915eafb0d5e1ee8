"""List the names of the files in a folder, and print names that are not UTF-8."""

import os
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ka_ray.errors import InputError
from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, get_filesystem, is_remote
from ka_ray.storage.read_errors import is_fault_of_machine, read_again, to_user_error
from ka_ray.storage.uris import OBJECT_STORES

MEASURED_FILES = 1000
"""Number of files that a thread asks the size of at a time."""


def list_files(
    folder: Path, suffixes: Set[str] = frozenset(), leave_out: Callable[[str], bool] = lambda name: False
) -> list[str]:
    """List all files below a folder, in its subfolders, too; links are followed.

    Args:
        folder: A local or remote folder.
        suffixes: Lower-case suffixes such as ``.png``; other files are not listed. Empty: all files.
        leave_out: Called with the name of each file and folder, without its path; where it returns True, the
            file, or the folder with all that is in it, is not listed.

    Returns:
        Paths relative to the folder, sorted folder by folder (``a/z`` comes before ``a-b/c``). A link that
        leads to nothing is listed as a file, which cannot be read then.

    Raises:
        InputError: A folder cannot be listed, a link leads back to a folder that it is in, or an object of a
            store has a key with a part ``..``.
        ReadError: The machine or its disk could not list a folder, not even when tried again.

    Example:
        >>> list_files(Path(__file__).parent, {".py"})[:2]
        ['__init__.py', 'atomic_folder.py']
    """

    def wanted(name: str) -> bool:
        return not suffixes or PurePosixPath(name).suffix.lower() in suffixes

    if not is_remote(folder) or _protocol(folder) in LOCAL_PROTOCOLS:
        return [name for name in _list_local(folder, leave_out) if wanted(name)]
    return [name for name in _list_remote(folder, leave_out) if wanted(name)]


def list_files_with_sizes(
    folder: Path, leave_out: Callable[[str], bool] = lambda name: False
) -> dict[str, int]:
    """List all files below a folder as :func:`list_files` does: name -> size in bytes.

    Args:
        folder: A local or remote folder. A remote one is listed once: its list has the sizes.
        leave_out: As in :func:`list_files`.

    Raises:
        InputError: As in :func:`list_files`.
        ReadError: As in :func:`list_files`.
    """
    if is_remote(folder) and _protocol(folder) not in LOCAL_PROTOCOLS:
        return _list_remote(folder, leave_out)
    names = list(_list_local(folder, leave_out))
    local = _local_path(folder)
    return dict(zip(names, measure_files([f"{local}/{name}" for name in names]), strict=True))


def measure_files(names: Sequence[str]) -> list[int]:
    """Return the size of each file in bytes; -1 if it is missing.

    Args:
        names: Local file names, or URIs, whose size is given as -1: each would take a request.

    Raises:
        ReadError: The machine or its disk could not say it, not even when asked again.
    """
    # In threads, because a network file system answers slowly, but many at once.
    parts = [names[i : i + MEASURED_FILES] for i in range(0, len(names), MEASURED_FILES)]
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        return [size for sizes in pool.map(lambda part: [*map(_measure, part)], parts) for size in sizes]


def _measure(name: str) -> int:
    missing = -1  # it is counted as unreadable, under its name, when it is read
    try:
        return missing if "://" in name else os.stat(name).st_size  # noqa: PTH116  # pathlib is slower
    except ValueError:
        return missing
    except OSError as error:
        if not is_fault_of_machine(error):
            return missing
    try:
        return read_again(lambda: Path(name).stat().st_size)
    except OSError as error:  # a size that is not known now would be another one at the next attempt
        if is_fault_of_machine(error):
            raise to_user_error(error, printable(name)) from None
        return missing


def _local_path(folder: Path) -> str:
    return get_filesystem(folder)[1] if is_remote(folder) else str(folder)


def _list_local(folder: Path, leave_out: Callable[[str], bool]) -> Iterator[str]:
    local = _local_path(folder)
    return _walk(local, "", (os.path.realpath(local),), leave_out)


def _list_remote(folder: Path, leave_out: Callable[[str], bool]) -> dict[str, int]:
    """Return the names of all files below a remote folder, sorted, with their sizes; -1 if it has none."""
    sizes = _find_remote(folder)
    for name in sizes:  # an object store accepts any key, but as a file name this leads out of a folder
        if {"..", "."} & set(name.split("/")):
            raise InputError(f"{folder}: {printable(name)!r} is no name of a file in it; rename the object")
    # "\0" sorts before every other character, so this is the order of the lists of a name's parts.
    names = sorted(_without(list(sizes), leave_out), key=lambda name: name.replace("/", "\0"))
    return {name: sizes[name] for name in names}


LOCAL_PROTOCOLS = ("file", "local")
"""Protocols of URIs of local files; fsspec would not follow links there."""


def _protocol(path: Path) -> str:
    """Return the protocol of a URI; empty for a local path."""
    return path.protocol if is_remote(path) else ""  # type: ignore[attr-defined]


def _find_remote(folder: Path) -> dict[str, int]:
    """Return the names of all files below a remote folder, relative to it, and their sizes."""
    fs, root = get_filesystem(folder)
    try:
        # An object store lists all names at once. Of folders, fsspec's `find` would silently leave out those
        # that cannot be listed.
        has_folders = _protocol(folder) not in OBJECT_STORES
        found = [*_walk_remote(fs, root)] if has_folders else read_again(lambda: fs.find(root, detail=True))
    except OSError as error:
        raise _listing_error(error, str(folder)) from None
    entries = found if isinstance(found, list) else found.values()
    sizes = ((entry["name"], entry.get("size")) for entry in entries)
    return {name[len(root.rstrip("/")) + 1 :]: -1 if size is None else int(size) for name, size in sizes}


def _walk_remote(fs: Any, folder: str) -> Iterator[dict[str, Any]]:
    for entry in read_again(lambda: fs.ls(folder, detail=True)):
        if entry["type"] != "directory":
            yield entry
        elif entry["name"].rstrip("/") != folder.rstrip("/"):
            yield from _walk_remote(fs, entry["name"])


def _without(names: list[str], leave_out: Callable[[str], bool]) -> list[str]:
    """Return the paths of which no part is left out; `leave_out` is called once for each file and folder."""
    known: dict[str, bool] = {}

    def is_left_out(path: str) -> bool:
        if path not in known:
            above, _, name = path.rpartition("/")
            known[path] = (bool(above) and is_left_out(above)) or leave_out(name)
        return known[path]

    return [name for name in names if not is_left_out(name)]


def _listing_error(error: OSError, folder: str) -> Exception:
    """Return the error for the user about a folder, or a link in it, that cannot be followed."""
    if is_fault_of_machine(error):
        return to_user_error(error, printable(folder))
    return InputError(f"{printable(folder)} cannot be listed: {error.strerror or error}")


def _walk(
    folder: str, prefix: str, above: tuple[str, ...], leave_out: Callable[[str], bool]
) -> Iterator[str]:
    """Yield the names of all files below a local folder, in the order of :func:`list_files`.

    ``os.scandir`` and not ``os.walk``: it knows without another system call whether an entry is a file, and
    the names need not be sorted as a whole.

    Args:
        folder: The folder.
        prefix: What the names begin with: empty, or the path from the first folder to this one, and a slash.
        above: Where the folders on the way to this one, and this one itself, are without links.
        leave_out: See :func:`list_files`.
    """
    for entry, is_folder in _scan(folder, leave_out):
        if not is_folder:
            yield prefix + entry.name
            continue
        real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1].rstrip('/')}/{entry.name}"
        # It would be followed for ever, if not through one link, then through several of them.
        if any(f"{outer}/".startswith(f"{real.rstrip('/')}/") for outer in above):
            raise InputError(
                f"{printable(entry.path)} leads back to {printable(real)}, a folder that it is in; remove "
                "the link"
            )
        yield from _walk(entry.path, f"{prefix}{entry.name}/", (*above, real), leave_out)


def _scan(folder: str, leave_out: Callable[[str], bool]) -> list[tuple["os.DirEntry[str]", bool]]:
    """Return the sorted files and folders in a folder, and for each whether it is a folder."""
    found = []
    try:
        for entry in read_again(lambda: _sorted_entries(folder)):
            if leave_out(entry.name):
                continue
            is_folder = entry.is_dir()
            # A socket or a pipe is neither a file nor a folder; reading it would wait for ever.
            if is_folder or entry.is_file() or _leads_nowhere(entry):
                found.append((entry, is_folder))
    except OSError as error:  # leaving it out would change which images a run uses
        raise _listing_error(error, error.filename or folder) from None
    return found


def _sorted_entries(folder: str) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as scan:
        return sorted(scan, key=lambda entry: entry.name)


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)  # noqa: PTH110  # no Path for each entry


def join_names(names: Sequence[str], limit: int = 10) -> str:
    """Return names as a list in a sentence; of more than `limit` names, the number of the others.

    Example:
        >>> join_names(["cat", "dog"]), join_names(["a", "b", "c"], limit=2)
        ("'cat', 'dog'", "'a', 'b' and 1 more")
    """
    others = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in names[:limit]) + others


def printable(name: str) -> str:
    """Return a file name as text that can be printed and stored: bytes that are not UTF-8 become ``\\xe9``.

    Python keeps such bytes of a name as surrogates, which no UTF-8 file, terminal or Arrow column accepts.

    Example:
        >>> printable(os.fsdecode(b"caf\\xe9.png")) == "caf\\\\xe9.png"
        True
    """
    return name if name.isprintable() else os.fsencode(name).decode("utf-8", "backslashreplace")
