"""Make folders that nobody else can write to, for caches in places that many users share."""

import os
import stat
from contextlib import suppress
from pathlib import Path

from ka_ray.errors import InputError


def make_private_folder(folder: Path, advice: str) -> Path:
    """Make a folder with mode 0700, or check that an existing one is the user's own.

    In a shared place such as ``/tmp`` anyone can be first to make a folder or a link of a known name, and put
    files there that we would take for ours. So the folder gets its mode in the same system call that makes it
    (``mkdir``), and what is there already is looked at without following links (``lstat``).

    Args:
        folder: The folder.
        advice: What the user should do if the folder cannot be used; the end of the message.

    Returns:
        The folder.

    Raises:
        InputError: It cannot be made, is a link or a file, belongs to someone else, or others may write to
            it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:  # such as the folder of another user, or a disk that cannot be written to
        raise InputError(f"{folder} cannot be made: {error.strerror or error}; {advice}") from None
    if not hasattr(os, "getuid"):  # Windows has neither these owners nor these modes
        return folder
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder, but a link or a file"
    elif found.st_uid != os.getuid():
        problem = "belongs to someone else"
    elif found.st_mode & 0o022:
        problem = f"can be written to by others (its mode is {found.st_mode & 0o777:o})"
    else:
        if found.st_mode & 0o077:  # others may only read, so what is in it is ours
            folder.chmod(0o700)
        return folder
    raise InputError(f"{folder} {problem}; {advice}")
