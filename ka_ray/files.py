"""Files wherever they lie: local paths, and URIs of whatever fsspec knows (``s3://``, ``gs://``, ...).

A URI becomes a ``UPath``: it offers what ``pathlib.Path`` does (``/``, ``exists``, ``read_text``, ``glob``)
without being one, and stands where a signature says ``Path``; Python's own ``open`` and libraries that want a
file name refuse it. Here is what pathlib lacks, or what an object store does otherwise; what must be a local
file to be used goes through :mod:`ka_ray.copies`.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any, cast

from ka_ray.errors import InputError

if TYPE_CHECKING:  # a tenth of a second, for those alone who give URIs
    from upath import UPath

CACHE = "KA_RAY_CACHE"
"""The environment variable that names the folder of local copies."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Protocol -> the extra of this package that brings it."""

OBJECT_STORES = {*EXTRAS, "az", "abfs", "abfss", "adl", "oci", "memory"}
"""Stores without folders, where an upload is there whole or not at all, even over another object."""

SECRETS = re.compile(
    r"://[^/@]*:[^/@]*@|[?&;][^=&;]*(key|secret|token|password|signature|credential)[^=&;]*=", re.IGNORECASE
)

PARALLEL = 16
"""Requests at once: an object store answers each late, but many together."""


def refuse_credentials(uri: str, instead: str) -> None:
    """Refuse a URI that holds a password, a key or a token: it would end up in reports.

    Raises:
        InputError: Which does not repeat the URI, but says what to do instead.
    """
    if SECRETS.search(uri):
        raise InputError(f"credentials in the URI would end up in reports; {instead}")


def to_path(where: str | Path) -> Path:
    """Make a path of a local name or of a URI.

    Raises:
        InputError: A URI with credentials, with wildcards, of no known protocol, or of one that needs a
            package that is not installed.
    """
    text = str(where)
    if "://" not in text:
        return Path(text).expanduser()
    refuse_credentials(text, "they are taken from the environment, as the store's own tools take them")
    protocol, _, place = text.partition("://")
    if re.search(r"[*?\[\]]", text):
        raise InputError(f"{text}: a URI must name one place; *, ?, [ and ] are not accepted in it")
    if not place.strip("/"):
        raise InputError(f"{text}: the URI names no place")
    _check_protocol(protocol)
    from upath import UPath

    # Other processes write, too: what was listed before must not hide what is there now.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def _check_protocol(protocol: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = f"pip install 'ka_ray[{extra}]'" if extra else str(error)
        raise InputError(f"{protocol}:// needs a package that is not installed: {install}") from None
    except ValueError:
        raise InputError(f"{protocol}:// is no protocol that fsspec knows") from None


def is_path(value: object) -> bool:
    """Whether something is a path, of any kind, or the text of one."""
    if isinstance(value, str | Path):
        return True
    from upath import UPath

    return isinstance(value, UPath)


def is_remote(path: Path) -> bool:
    """Whether a path is a URI's."""
    return not isinstance(path, Path)


def filesystem(path: Path) -> tuple[Any, str]:
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
        fs, name = filesystem(path)
        fs.makedirs(name, exist_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it; nothing where there is none."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        fs, name = filesystem(path)
        fs.rm(name, recursive=True)


def read_bytes(path: Path) -> bytes:
    """Read a file, a remote one in a single request: as it is at one moment."""
    if not is_remote(path):
        return path.read_bytes()
    fs, name = filesystem(path)
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
    part = path.with_name(f".{path.name}.part")
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
    staged = path.with_name(f".{path.name}.part")
    path.fs.put_file(str(part), staged.path)
    path.fs.mv(staged.path, path.path)


def list_files(folder: Path, suffixes: Set[str] = frozenset()) -> list[str]:
    """List the files below a folder, of some suffixes or all, by their names in it, sorted folder by folder.

    Example:
        >>> list_files(Path(__file__).parent / "images", {".py"})[:2]
        ['__init__.py', 'augment.py']
    """

    def wanted(name: str) -> bool:
        return not suffixes or PurePosixPath(name).suffix.lower() in suffixes

    if is_remote(folder):
        fs, root = filesystem(folder)
        names = [name[len(root.rstrip("/")) + 1 :] for name in fs.find(root) if wanted(name)]
    else:
        paths = (path for path in folder.rglob("*") if wanted(path.name) and path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
    return sorted(names, key=lambda name: name.split("/"))


def read_each(names: Sequence[str]) -> Iterator[bytes | OSError]:
    """Read files of one file system, named as text; many remote ones at once.

    Yields:
        Each file's content, or the error where it cannot be read.
    """
    if not any("://" in name for name in names):
        yield from (_read(lambda name: Path(name).read_bytes(), name) for name in names)
        return
    import fsspec

    fs, _ = fsspec.core.url_to_fs(names[0], use_listings_cache=False)
    with ThreadPoolExecutor(PARALLEL) as pool:
        yield from pool.map(lambda name: _read(fs.cat_file, name), names)


def _read(read: Callable[[str], bytes], name: str) -> bytes | OSError:
    try:
        return read(name)
    except OSError as error:
        return error


@contextmanager
def ranges_of(path: Path) -> Iterator[Any]:
    """Give what a reader of ranges opens: a local path itself, else a file whose every range is a request."""
    if not is_remote(path):
        yield path
        return
    fs, name = filesystem(path)
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
