"""Local copies of remote files that must be on a local disk: weights and memory-mapped feature shards.

Each node keeps its copies in :func:`ka_ray.storage.files.cache_folder`, a separate one for every version of a
file, so that an old version is never taken for a new one. The folder may be deleted while no run uses it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from ka_ray.storage.durable import replace_durably
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, cache_folder, get_filesystem, is_remote

VERSION_KEYS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")
"""The entries of fsspec's ``info`` that change with a file's content, by the names that file systems use.

fsspec's own ``fs.ukey`` is not used: it takes HTTP files for unchangeable, needs a request per file where a
listing of the folder has all versions, and hashes fields in which a listing differs from a single request."""

MAX_FETCHES = 3
"""How often a file that changes while it is fetched is fetched before the fetch counts as failed."""


def fetch_local_copy(path: Path) -> Path:
    """Return a local file with the content of another, which is downloaded if this node has no copy of it.

    Args:
        path: A local file, which is returned as it is, or a remote one.

    Raises:
        OSError: The file does not exist, or cannot be fetched.
    """
    if not is_remote(path):
        return path
    try:
        return _fetch(*get_filesystem(path))
    except OSError:
        raise
    except Exception as error:  # every file system raises its own types
        raise OSError(f"{path} cannot be fetched: {error}") from error


def fetch_local_copies(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return a local copy of several files of one folder; see :func:`fetch_local_copy`.

    Args:
        folder: A local or remote folder.
        names: Names of files in it.

    Returns:
        The local files, in the order of the names.

    Raises:
        OSError: A file does not exist, or cannot be fetched.
    """
    if not is_remote(folder):
        return [folder / name for name in names]
    fs, root = get_filesystem(folder)
    # One listing has the versions of all files; asking for each would be a request per file.
    listed = {entry["name"]: entry for entry in fs.ls(root, detail=True)}
    paths = [f"{root}/{name}" for name in names]
    missing = [path for path in paths if path not in listed]
    if missing:
        raise OSError(f"{fs.unstrip_protocol(missing[0])} does not exist")
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        return list(pool.map(lambda path: _fetch(fs, path, listed[path]), paths))


def download_into(path: Path, folder: Path) -> Path:
    """Copy a remote file, or a remote folder with everything in it, into a local folder.

    Args:
        path: The remote file or folder.
        folder: The local folder, which exists.

    Returns:
        The copy, which has the same name.
    """
    target, (fs, root) = folder / path.name, get_filesystem(path)
    for suffix in [f"/{name}" for name in list_files(path)] if path.is_dir() else [""]:
        copy = Path(f"{target}{suffix}")
        copy.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}{suffix}", str(copy))
    return target


def _fetch(fs: Any, path: str, info: Mapping[str, Any] | None = None) -> Path:
    """Return the cached copy of a file; if there is none, one process downloads it and the others wait.

    Args:
        fs: The fsspec file system.
        path: The file's path there.
        info: The result of ``fs.info`` for the file, if it is already known. None: call it.
    """
    from filelock import FileLock

    info = info or fs.info(path)
    for _ in range(MAX_FETCHES):
        cached, has_version = _cache_path(fs, path, info)
        if has_version and cached.exists():
            return cached
        cached.parent.mkdir(exist_ok=True)
        with FileLock(cached.with_name(".lock")):
            # Another process may have fetched the file while this one waited for the lock.
            if has_version and cached.exists():
                return cached
            part = cached.with_name(".part")
            fs.get_file(path, str(part))
            # If the file changed during the download, the copy may mix both versions: fetch it again.
            size, info = info.get("size"), fs.info(path)
            if _cache_path(fs, path, info)[0] == cached and size in (None, part.stat().st_size):
                replace_durably(part, cached)
                return cached
    raise OSError(
        f"{fs.unstrip_protocol(path)} cannot be fetched: it changed during each of {MAX_FETCHES} downloads"
    )


def _cache_path(fs: Any, path: str, info: Mapping[str, Any]) -> tuple[Path, bool]:
    """Return where this version of a file is cached, and whether the file system tells versions apart."""
    version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
    name = path.rpartition("/")[2]
    if name in ("", ".", ".."):  # an object store accepts such keys
        raise OSError(f"{fs.unstrip_protocol(path)} names no file")
    key = sha256(f"{fs.unstrip_protocol(path)}\n{info.get('size')}\n{version}".encode()).hexdigest()
    return cache_folder() / key[:32] / name, bool(version)
