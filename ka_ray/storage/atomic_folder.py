"""Write a whole folder in one step."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote


@contextmanager
def atomic_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Write a local folder in one step: readers see the old folder or the new one, never a part.

    Args:
        folder: The folder to write. An existing one is replaced if it is empty or has a file `mark`.
        mark: Name of the file by which the folder is known to have been written by the same command.

    Yields:
        An empty folder to write into. When the block ends it becomes ``folder``; if the block raises, it is
        deleted, and an older folder stays as it is.

    Raises:
        InputError: The folder is remote, is a file, holds something else, or cannot be made.
    """
    if is_remote(folder):
        raise InputError(f"--output {folder}: must be a local folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output {folder}: is a file; give a folder")
    if folder.exists() and not (folder / mark).is_file() and any(folder.iterdir()):
        raise InputError(f"--output {folder}: is not empty, and has no {mark}; give another folder")
    part, old = (folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.{end}") for end in ("part", "old"))
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--output {folder}: cannot be written to: {error.strerror or error}") from None
    try:
        yield part
        _replace(folder, part, old)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(folder: Path, part: Path, old: Path) -> None:
    """Put a folder in the place of another one, which cannot be done in one step if that holds files."""
    is_there = folder.exists()
    if is_there:
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if is_there:
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
