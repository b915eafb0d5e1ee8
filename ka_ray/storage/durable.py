"""Rename files so that they survive a power failure."""

import errno
import os
from pathlib import Path


def replace_durably(part: Path, path: Path) -> None:
    """Rename a local file so that the new name survives a power failure, with all of the content.

    Without the first sync the disk may know the new name before the content: after a failure the file is
    there, but empty. Without the second one it may know neither.

    Args:
        part: A complete local file in the same folder.
        path: Its new name; an existing file is replaced.
    """
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a local file, or the names in a local folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder, because their server does so itself.
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
