"""The exceptions whose message is written for the user, and the exit codes of commands that end with one.

Every other exception is a bug: it ends a command with a traceback.
"""

import errno
import sys
from collections.abc import Callable


class InputError(ValueError):
    """A config key, a file or a plan is wrong.

    The message says which one, what was given, and what would be accepted.
    """


class ClusterError(RuntimeError):
    """Machines failed, not the input.

    Finished work is kept: the same command, started again, continues from there.
    """


USER_ERRORS = (InputError, FloatingPointError, ClusterError)
"""The errors that a user can resolve: by other input, a lower learning rate (``FloatingPointError``: numbers
became infinite or NaN), or other machines."""

EXIT_BAD_INPUT = 2
"""Exit code of a command that cannot work as it was given; argument parsers use the same one."""

EXIT_TRY_AGAIN = 75
"""Exit code of a command whose machines failed, so that it may succeed next time; sysexits.h: EX_TEMPFAIL."""


def disk_full_error(error: BaseException) -> ClusterError | None:
    """Turn the operating system's "no space left" into a message for the user.

    Args:
        error: Any exception.

    Returns:
        The error to show, or None if the exception does not mean that a disk is full.
    """
    if not (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return None
    place = f" at {error.filename}" if error.filename else ""
    return ClusterError(
        f"the disk is full{place}; what was done is kept: free some space, then run the same command again"
    )


def user_message(error: BaseException) -> tuple[str, int] | None:
    """Return the message of an error and the exit code of the command that it ends.

    Args:
        error: The exception that ended the command.

    Returns:
        The message and the exit code, or None if the exception is a bug, whose traceback is needed.
    """
    # Python raises a full disk as OSError, which otherwise counts as a bug.
    shown = disk_full_error(error) or error
    if not isinstance(shown, USER_ERRORS):
        return None
    return str(shown), EXIT_TRY_AGAIN if isinstance(shown, ClusterError) else EXIT_BAD_INPUT


def exit_code_of(work: Callable[[], None]) -> int:
    """Call a function and return the exit code of the command that consists of it.

    Errors that the user can resolve are printed as one line on standard error. Any other exception is raised,
    so that Python prints its traceback and exits with code 1.

    Args:
        work: The command's work, without its arguments.

    Returns:
        0 if the function returned, :data:`EXIT_BAD_INPUT` or :data:`EXIT_TRY_AGAIN` otherwise.
    """
    try:
        work()
    except Exception as error:
        shown = user_message(error)
        if shown is None:
            raise
        message, code = shown
        # Standard output holds only results, which may be piped into another program.
        print(f"error: {message}", file=sys.stderr)
        return code
    return 0
