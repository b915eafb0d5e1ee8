"""Find image files by paths, folders and patterns."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from ka_ray.errors import InputError
from ka_ray.images.folder import SUFFIXES, find_image_files
from ka_ray.images.hidden_files import is_hidden
from ka_ray.storage.file_names import printable
from ka_ray.storage.files import is_remote
from ka_ray.storage.uris import to_path


def find_images(given: Iterable[str | Path]) -> Iterator[Path]:
    """Yield the image files that paths name, in order.

    Args:
        given: Files, which need not exist; and folders, local or remote, which stand for all image files
            below them, sorted, without hidden ones. A local text with ``*``, ``?`` or ``[`` that is no file's
            name is a pattern, in which ``**`` stands for any folders.

    Raises:
        InputError: A folder has no image, or no file matches a pattern.
    """
    for one in given:
        path = to_path(one)
        if isinstance(one, str) and _is_pattern(path):
            for match in _match(path):
                yield from _find_below(match) if match.is_dir() else [match]
        elif names_folder(path):
            yield from _find_below(path)
        else:
            yield path


def names_one_file(given: Iterable[str]) -> bool:
    """Return whether paths, as :func:`find_images` takes them, are one file's name."""
    paths = [to_path(one) for one in given]
    return len(paths) == 1 and not _is_pattern(paths[0]) and not names_folder(paths[0])


def names_folder(path: Path) -> bool:
    """Return whether a path is a folder; an object store is not asked about the name of an image."""
    if is_remote(path) and path.suffix.lower() in SUFFIXES:
        return False
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long: said when the file is read
        return False


def _is_pattern(path: Path) -> bool:
    return not is_remote(path) and glob.has_magic(str(path)) and not os.path.exists(path)  # noqa: PTH110  # raises nothing


def _match(pattern: Path) -> list[Path]:
    """Return what matches a pattern, sorted, without hidden files and folders that it does not name."""
    found = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # Path.glob matches dots, too
    given = {*pattern.parts}  # such as `..`, or a hidden folder that the user names
    matches = [Path(name) for name in found if not any(map(is_hidden, {*PurePath(name).parts} - given))]
    if not matches:
        raise InputError(f"no file matches {printable(str(pattern))!r}")
    return matches


def _find_below(folder: Path) -> Iterator[Path]:
    names, notes = find_image_files(folder)
    if not names:
        raise InputError(f"{folder}: no image files. {'; '.join(notes)}".rstrip(". "))
    yield from (folder / name for name in names)
