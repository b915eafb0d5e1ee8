"""Tell files that are missing or damaged from machines that cannot read them, and try the latter again.

A file that does not exist is a fault of the file: whoever reads images counts it as unreadable. An error of
input and output, a stale handle of a network file system, too many open files or a missing permission say
nothing about the file. If they counted as unreadable, a share that is gone for a minute would make a run
leave out its images.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from ka_ray.errors import InputError, ReadError

T = TypeVar("T")

FAULTS_OF_THE_FILE = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL)
)
"""Numbers of errors that tell about the file or its name; reading it again would not help."""

WAITS_S = (0.2, 1.0)
"""Seconds to wait before the second and the third attempt."""

WORDS = {
    errno.EIO: "the disk or the network file system reports an input/output error",
    errno.ESTALE: "the network file system has lost it (stale file handle); mount the file system again",
    errno.EMFILE: "this process has too many open files; raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has too many open files; raise its limit (fs.file-max)",
}
"""Number of an error -> what has happened, and what to do."""

NO_PERMISSION = "permission denied; let the user that runs ka_ray, or Ray's workers, read it"


def is_fault_of_machine(error: BaseException) -> bool:
    """Return whether an error tells about the machine, disk, network or permissions, not about the file.

    Args:
        error: What opening or reading a file raised. Errors without a number are raised by libraries about
            what they find in the file.
    """
    if isinstance(error, PermissionError | ConnectionError | TimeoutError):
        return True
    return (
        isinstance(error, OSError)
        and not isinstance(error, FileNotFoundError)  # that of fsspec may have no number
        and error.errno is not None
        and error.errno not in FAULTS_OF_THE_FILE
    )


def read_again(read: Callable[[], T]) -> T:
    """Call a function that reads; call it again, after a short wait, if the machine could not read.

    Args:
        read: Reads all over again at every call.

    Raises:
        OSError: The last attempt failed, too, or the file itself is at fault.
    """
    for wait in WAITS_S:
        try:
            return read()
        except OSError as error:
            if not is_fault_of_machine(error):
                raise
        time.sleep(wait)
    return read()


def iterate_again(start: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yield what an iterator reads; start it again, behind what was yielded, if the machine could not read.

    Args:
        start: Returns a new iterator over the same items.

    Yields:
        Each item once.

    Raises:
        OSError: The last attempt failed, too, or the file itself is at fault.
    """
    done = 0
    for wait in (*WAITS_S, None):
        try:
            for number, item in enumerate(start()):
                if number >= done:
                    done = number + 1
                    yield item
            return
        except OSError as error:
            if wait is None or not is_fault_of_machine(error):
                raise
            time.sleep(wait)


def to_user_error(error: BaseException, place: object) -> InputError | ReadError:
    """Turn an error that is no fault of the file into one for the user.

    Args:
        error: What the last attempt to read raised.
        place: What was read, such as the path.

    Returns:
        An InputError if permissions are missing; else a ReadError.
    """
    if isinstance(error, PermissionError):
        return InputError(f"{place} cannot be read: {NO_PERMISSION}")
    number = getattr(error, "errno", None) or 0
    text = getattr(error, "strerror", None) or str(error)
    words = WORDS.get(number, text)
    if words != text and text != os.strerror(number):  # what a library or a server says
        words = f"{words} ({text})"
    return ReadError(f"{place} cannot be read, after {len(WAITS_S) + 1} attempts: {words}")
