"""Leave out files and folders that operating systems and other programs add to folders of images.

Many of them hold images: thumbnails, and what is left of deleted files. torchvision's ``ImageFolder`` reads
them like all others, ``.ipynb_checkpoints`` as a class of its own.
"""

import os
from collections import Counter
from pathlib import Path

from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote
from ka_ray.storage.read_errors import read_again, to_user_error

ADDED_NAMES = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),  # Windows
        *("@eadir", "#recycle", "@recycle", "#snapshot", "@tmp"),  # storage servers of Synology and QNAP
        *("__macosx", "lost+found"),
    )
)
"""Names in lower case. Besides these, every name that begins with a dot is hidden."""

MENTIONED = (*ADDED_NAMES, ".ipynb_checkpoints", ".ds_store", ".git", ".cache")
"""Names that a note mentions one by one."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is none of the user's images, by its name without its path."""
    return name.startswith(".") or name.lower() in ADDED_NAMES


class HiddenFiles:
    """Finds hidden files and folders, and counts them; for ``leave_out`` of ``list_files``."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __call__(self, name: str) -> bool:
        """Return whether a name is hidden, and count it if it is."""
        if not is_hidden(name):
            return False
        # "._photo.jpg" is what macOS stores beside photo.jpg on file systems of others.
        kind = "._*" if name.startswith("._") else name if name.lower() in MENTIONED else ".*"
        self._counts[kind] += 1
        return True

    def add(self, others: "HiddenFiles") -> None:
        """Count what was found elsewhere, too."""
        self._counts.update(others._counts)

    @property
    def note(self) -> str:
        """What was left out, for the user; empty if nothing."""
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(self._counts.items()))
        return f"left out hidden files and folders: {found}" if found else ""


def find_files(path: Path, pattern: str) -> tuple[list[Path], list[str]]:
    """Find the files of a folder that match a pattern, without hidden ones.

    Args:
        path: A folder; or a file, which is then the only one.
        pattern: A glob pattern; unlike in a shell, its ``*`` matches a dot at the beginning, too.

    Returns:
        The files, sorted; and a note on what was left out, if anything.

    Raises:
        InputError: No file matches, or the folder cannot be listed.
        ReadError: The machine or its disk could not list the folder, not even when tried again.
    """
    hidden = HiddenFiles()
    try:
        found = [path] if path.is_file() else read_again(lambda: _match(path, pattern))
    except OSError as error:
        raise to_user_error(error, path) from None
    files = [file for file in found if file == path or not any(map(hidden, file.relative_to(path).parts))]
    if not files:
        raise InputError(
            f"images.path {path}: no file matches images.files = {pattern!r}. {hidden.note}".rstrip(". ")
        )
    return files, [f"{path}: {hidden.note}"] if hidden.note else []


def _match(path: Path, pattern: str) -> list[Path]:
    if not is_remote(path):
        os.scandir(path).close()  # glob finds nothing where permissions are missing, without an error
    return sorted(path.glob(pattern))
