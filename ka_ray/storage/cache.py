"""Local copies of remote files, for what must be a local file to be used: weights, memory-mapped shards.

Each node keeps them in :func:`ka_ray.storage.files.cache_folder`, one copy for every version of an object, so
that a copy is never taken for another version. The folder may be removed whenever no run reads from it.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

from ka_ray.storage.files import MAX_PARALLEL_REQUESTS, cache_folder, get_filesystem, is_remote, list_files

VERSION_KEYS = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified", "created")
"""What file systems call what changes with a file's content."""

TRIES = 3


def fetch_local_copy(path: Path) -> Path:
    """Give a local file with the content of ``path``: itself, or a copy that this node keeps.

    Raises:
        OSError: There is none, or it cannot be fetched.
    """
    if not is_remote(path):
        return path
    try:
        return _kept(*get_filesystem(path))
    except OSError:
        raise
    except Exception as error:  # every file system raises its own kinds
        raise OSError(f"{path} cannot be fetched: {error}") from error


def fetch_local_copies(folder: Path, names: Sequence[str]) -> list[Path]:
    """Give :func:`fetch_local_copy` of files in a folder.

    Raises:
        OSError: One is not there, or cannot be fetched.
    """
    if not is_remote(folder):
        return [folder / name for name in names]
    fs, root = get_filesystem(folder)
    listed = {entry["name"]: entry for entry in fs.ls(root, detail=True)}
    names = [f"{root}/{name}" for name in names]
    missing = [name for name in names if name not in listed]
    if missing:
        raise OSError(f"{missing[0]} is not there any more")
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        return list(pool.map(lambda name: _kept(fs, name, listed[name]), names))


def download_into(path: Path, folder: Path) -> Path:
    """Copy a remote file, or a remote folder with all in it, into a local folder, under its own name."""
    target, (fs, root) = folder / path.name, get_filesystem(path)
    for below in [f"/{name}" for name in list_files(path)] if path.is_dir() else [""]:
        to = Path(f"{target}{below}")
        to.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}{below}", str(to))
    return target


def _kept(fs: Any, name: str, info: Mapping[str, Any] | None = None) -> Path:
    """Give the cache's copy of a file; what is missing is fetched by one process, for which others wait."""
    from filelock import FileLock

    info = info or fs.info(name)
    for _ in range(TRIES):
        kept, has_version = _place(fs, name, info)
        if has_version and kept.exists():
            return kept
        kept.parent.mkdir(exist_ok=True)
        with FileLock(kept.with_name(".lock")):
            if has_version and kept.exists():
                return kept
            part = kept.with_name(".part")
            fs.get_file(name, str(part))
            size, info = info.get("size"), fs.info(name)
            if _place(fs, name, info)[0] == kept and size in (None, part.stat().st_size):
                part.replace(kept)
                return kept
    raise OSError(f"{fs.unstrip_protocol(name)} changes again and again while it is read")


def _place(fs: Any, name: str, info: Mapping[str, Any]) -> tuple[Path, bool]:
    """Give where the cache keeps this version of a file, and whether its file system tells versions apart."""
    version = next((str(info[key]) for key in VERSION_KEYS if info.get(key)), "")
    key = sha256(f"{fs.unstrip_protocol(name)}\n{info.get('size')}\n{version}".encode()).hexdigest()
    return cache_folder() / key[:32] / name.rpartition("/")[2], bool(version)
