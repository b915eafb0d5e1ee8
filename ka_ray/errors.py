"""The exceptions whose message is for the user."""

import errno
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A bad config key, file or plan. The message says which, what it is, and what would be accepted."""


class ClusterError(RuntimeError):
    """Machines failed, not the input: what was done is kept, and the same command goes on from there."""


USER_ERRORS = (InputError, FloatingPointError, ClusterError)
"""What a user can mend, by other input, another rate (where numbers are not finite), or other machines."""


EXIT_TRY_AGAIN = 75
"""Exit code where machines failed, as sysexits.h has it; 2: what was given cannot work."""


def disk_full_error(error: BaseException) -> ClusterError | None:
    """Put a disk that ran full into words; None where it did not."""
    if not (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return None
    place = f" at {error.filename}" if error.filename else ""
    return ClusterError(f"the disk is full{place}; what was done is kept: free some space, run it again")


def user_message(error: BaseException) -> tuple[str, int] | None:
    """The message of an error and the exit code of a command that it ends; None where it is a bug."""
    meant = disk_full_error(error) or error
    if not isinstance(meant, USER_ERRORS):
        return None
    return str(meant), EXIT_TRY_AGAIN if isinstance(meant, ClusterError) else 2


def exit_code_of(work: Callable[[], None]) -> int:
    """Do something; what the user can mend is one clear message and exit code 2, or 75 where machines failed.

    Anything else is raised: Python prints a traceback, and the command has failed with exit code 1.
    """
    try:
        work()
    except Exception as error:
        told = user_message(error)
        if told is None:
            raise
        message, code = told
        print(f"error: {message}", file=sys.stderr)
        return code
    return 0
