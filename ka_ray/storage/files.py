"""Operations on files that may be local or at a URI of any protocol that fsspec knows (``s3://``, ``gs://``).

A URI becomes a ``UPath``. It has the interface of ``pathlib.Path`` but is not one, although signatures here
say ``Path`` for both: Python's ``open`` and libraries that take a file name refuse it. This module holds what
pathlib lacks, and what an object store does differently. See :mod:`ka_ray.storage.cache` for local copies.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from ka_ray.errors import InputError
from ka_ray.storage.durable import replace_durably
from ka_ray.storage.private_folder import make_private_folder
from ka_ray.storage.uris import OBJECT_STORES

if TYPE_CHECKING:  # importing it takes a tenth of a second, which only users of URIs should pay
    from upath import UPath

CACHE_VARIABLE = "KA_RAY_CACHE"
"""The environment variable that names the folder in which the folder of local copies is made."""

MAX_PARALLEL_REQUESTS = 16
"""Number of simultaneous requests: an object store takes long to answer one, but answers many at once."""


def is_path(value: object) -> bool:
    """Whether a value is a local or remote path, or the text of one."""
    if isinstance(value, str | Path):
        return True
    from upath import UPath

    return isinstance(value, UPath)


def is_remote(path: Path) -> bool:
    """Whether a path is a URI; ``file://`` URIs count as remote, too."""
    return not isinstance(path, Path)


def get_filesystem(path: Path) -> tuple[Any, str]:
    """Return the fsspec file system of a remote path, and the path's name there."""
    uri = cast("UPath", path)
    return uri.fs, uri.path


def absolute(path: Path) -> Path:
    """Make a local path absolute; a URI always is."""
    return path if is_remote(path) else path.absolute()


def exists(path: Path) -> bool:
    """Whether a file or folder exists.

    Raises:
        InputError: This cannot be found out: credentials or permissions are missing, or nothing answers.
    """
    try:
        return path.exists()
    except Exception as error:  # every file system raises its own types
        raise InputError(f"{path} cannot be reached: {error}") from None


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if they do not exist; object stores have no folders and need none."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    elif cast("UPath", path).protocol not in OBJECT_STORES:
        fs, name = get_filesystem(path)
        fs.makedirs(name, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with everything in it, if it exists."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        fs, name = get_filesystem(path)
        fs.rm(name, recursive=True)


def read_bytes(path: Path) -> bytes:
    """Read a whole file; a remote one in a single request, so that all of it is of the same version."""
    if not is_remote(path):
        return path.read_bytes()
    fs, name = get_filesystem(path)
    return cast(bytes, fs.cat_file(name))


def read_text(path: Path) -> str:
    """Read a UTF-8 text file; see :func:`read_bytes`."""
    return read_bytes(path).decode("utf-8")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file in one step: readers see the old content or the new, never a part.

    On a local disk the file is there after a power failure, too, see :func:`replace_durably`.

    Args:
        path: The file to write; an existing one is replaced.

    Yields:
        A local file to write to. When the block ends it becomes ``path``; if the block raises, it is deleted.
    """
    if is_remote(path):
        with TemporaryDirectory(dir=cache_folder(), prefix="upload-") as folder:
            part = Path(folder) / path.name
            yield part
            _upload(part, cast("UPath", path))
        return
    # A random name, because another process may be writing the same file.
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        replace_durably(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step; see :func:`atomic_file`.

    Args:
        path: The file to write; an existing one is replaced.
        text: The new content.
    """
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _upload(part: Path, path: "UPath") -> None:
    """Upload a local file so that it appears at a URI in one step."""
    if path.protocol in OBJECT_STORES:
        path.fs.put_file(str(part), path.path)
        return
    # Other file systems show a file while it grows: upload under another name, then rename.
    staged = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    path.fs.put_file(str(part), staged.path)
    if path.protocol in ("file", "local"):
        replace_durably(Path(staged.path), Path(path.path))
    else:
        path.fs.mv(staged.path, path.path)


@contextmanager
def open_random_access(path: Path) -> Iterator[Any]:
    """Open a file of which only some byte ranges are read, such as a Parquet file.

    Yields:
        What pyarrow can open: a local path itself, or a remote file that fetches only what is read.
    """
    if not is_remote(path):
        yield path
        return
    fs, name = get_filesystem(path)
    # fsspec's default cache reads ahead, which fetches megabytes around every small range.
    with fs.open(name, "rb", cache_type="none") as file:
        yield file


def cache_folder() -> Path:
    """Return this node's folder of local copies; it is made if it does not exist.

    Raises:
        InputError: The folder cannot be made, is a link, was made by another user, or can be written to by
            others.
    """
    parent = Path(os.environ.get(CACHE_VARIABLE) or gettempdir())
    user = getattr(os, "getuid", int)()  # Windows has no getuid
    return make_private_folder(
        parent / f"ka_ray-{user}", f"remove it, or set {CACHE_VARIABLE} to a folder of yours"
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step; see :func:`atomic_file`.

    Args:
        path: The file to write; an existing one is replaced.
        content: Anything that :mod:`json` can write.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, **kinds: type) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        kinds: Key that the object must have -> type of its value.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The file is damaged, or lacks a key.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds a {type(content).__name__}, not an object")
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind) or (kind is int and isinstance(content[key], bool)):
            raise InputError(
                f"{path} is damaged: {key} is {content.get(key)!r:.80}, not of type {kind.__name__}"
            )
    return content


def format_bytes(num_bytes: float) -> str:
    """Format a number of bytes in the largest of GiB, MiB and KiB that gives at least 1, or else in KiB.

    Example:
        >>> format_bytes(1536), format_bytes(100 * 1024**2), format_bytes(3 * 1024**3)
        ('1.5 KiB', '100.0 MiB', '3.0 GiB')
    """
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"
