"""Files wherever they lie: local paths, and URIs of whatever fsspec knows (``s3://``, ``gs://``, ...).

A URI becomes a ``UPath``: it offers what ``pathlib.Path`` does (``/``, ``exists``, ``read_text``, ``glob``)
without being one, and stands where a signature says ``Path``; Python's own ``open`` and libraries that want a
file name refuse it. Here is what pathlib lacks, or what an object store does otherwise; what must be a local
file to be used goes through :mod:`ka_ray.storage.cache`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from ka_ray.errors import InputError
from ka_ray.storage.uris import OBJECT_STORES

if TYPE_CHECKING:  # a tenth of a second, for those alone who give URIs
    from upath import UPath

CACHE = "KA_RAY_CACHE"
"""The environment variable that names the folder of local copies."""

MAX_PARALLEL_REQUESTS = 16
"""Requests at once: an object store answers each late, but many together."""


def is_path(value: object) -> bool:
    """Whether something is a path, of any kind, or the text of one."""
    if isinstance(value, str | Path):
        return True
    from upath import UPath

    return isinstance(value, UPath)


def is_remote(path: Path) -> bool:
    """Whether a path is a URI's."""
    return not isinstance(path, Path)


def get_filesystem(path: Path) -> tuple[Any, str]:
    """Give the fsspec file system of a URI, and the name of the file there."""
    uri = cast("UPath", path)
    return uri.fs, uri.path


def absolute(path: Path) -> Path:
    """Make a local path absolute; a URI is."""
    return path if is_remote(path) else path.absolute()


def exists(path: Path) -> bool:
    """Whether something is there.

    Raises:
        InputError: That cannot be found out: no credentials, no permission, no answer.
    """
    try:
        return path.exists()
    except Exception as error:  # every file system raises its own kinds
        raise InputError(f"{path} cannot be reached: {error}") from None


def make_folder(path: Path) -> None:
    """Make a folder, with those above it; object stores have none, and need none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    elif cast("UPath", path).protocol not in OBJECT_STORES:
        fs, name = get_filesystem(path)
        fs.makedirs(name, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it; nothing where there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        fs, name = get_filesystem(path)
        fs.rm(name, recursive=True)


def read_bytes(path: Path) -> bytes:
    """Read a file, a remote one in a single request: as it is at one moment."""
    if not is_remote(path):
        return path.read_bytes()
    fs, name = get_filesystem(path)
    return cast(bytes, fs.cat_file(name))


def read_text(path: Path) -> str:
    """Read a text file; see :func:`read_bytes`."""
    return read_bytes(path).decode()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a local file to write; as the block ends it is at ``path`` in one step, whole or not at all."""
    if is_remote(path):
        with TemporaryDirectory(dir=cache_folder(), prefix="upload-") as folder:
            part = Path(folder) / path.name
            yield part
            _upload(part, cast("UPath", path))
        return
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")  # another process may write the same file
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one atomic step."""
    with atomic_file(path) as part:
        part.write_text(text)


def _upload(part: Path, path: "UPath") -> None:
    if path.protocol in OBJECT_STORES:
        path.fs.put_file(str(part), path.path)
        return
    staged = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    path.fs.put_file(str(part), staged.path)
    path.fs.mv(staged.path, path.path)


def list_files(folder: Path, suffixes: Set[str] = frozenset()) -> list[str]:
    """List the files below a folder, of some suffixes or all, by their names in it, sorted folder by folder.

    Example:
        >>> list_files(Path(__file__).parent, {".py"})[:2]
        ['__init__.py', 'cache.py']
    """

    def wanted(name: str) -> bool:
        return not suffixes or PurePosixPath(name).suffix.lower() in suffixes

    if is_remote(folder):
        fs, root = get_filesystem(folder)
        names = [name[len(root.rstrip("/")) + 1 :] for name in fs.find(root) if wanted(name)]
    else:
        paths = (path for path in folder.rglob("*") if wanted(path.name) and path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
    return sorted(names, key=lambda name: name.split("/"))


def read_files(names: Sequence[str]) -> Iterator[bytes | OSError]:
    """Read files of one file system, named as text; many remote ones at once.

    Yields:
        Each file's content, or the error where it cannot be read.
    """
    if not any("://" in name for name in names):
        yield from (_read(lambda name: Path(name).read_bytes(), name) for name in names)
        return
    import fsspec

    fs, _ = fsspec.core.url_to_fs(names[0], use_listings_cache=False)
    with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:
        yield from pool.map(lambda name: _read(fs.cat_file, name), names)


def _read(read: Callable[[str], bytes], name: str) -> bytes | OSError:
    try:
        return read(name)
    except OSError as error:
        return error


@contextmanager
def open_random_access(path: Path) -> Iterator[Any]:
    """Give what a reader of ranges opens: a local path itself, else a file whose every range is a request."""
    if not is_remote(path):
        yield path
        return
    fs, name = get_filesystem(path)
    with fs.open(name, "rb", cache_type="none") as file:
        yield file


def cache_folder() -> Path:
    """Give this node's folder of local copies, made if it is not there."""
    given, user = os.environ.get(CACHE), getattr(os, "getuid", int)()
    folder = Path(given) if given else Path(gettempdir()) / f"ka_ray-{user}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not given and folder.stat().st_uid != user:
        raise InputError(f"{folder} belongs to someone else; set {CACHE} to a folder of yours")
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one atomic step: it is there whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(read_text(path))
    return content


def format_bytes(num_bytes: float) -> str:
    """Format a number of bytes for people, in the largest fitting unit up to GiB.

    Example:
        >>> format_bytes(1536), format_bytes(100 * 1024**2), format_bytes(3 * 1024**3)
        ('1.5 KiB', '100.0 MiB', '3.0 GiB')
    """
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
