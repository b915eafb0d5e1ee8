"""The exceptions whose message is written for the user, and the exit codes of commands that raise them.

Any other exception is a bug: the command ends with a traceback.
"""

import errno
import io
import json
import sys
import traceback
from collections.abc import Callable

from ka_ray.verbosity import verbosity


class InputError(ValueError):
    """A config key, a file or a resource request is wrong, so the command cannot work as it was given.

    The message says which one, what was given, and what would be accepted.
    """


class ClusterError(RuntimeError):
    """A machine failed: the input is right, but a worker, a node, a disk or the network was lost.

    Finished work is kept. The same command, run again, resumes from there.
    """


class ReadError(ClusterError):
    """A file cannot be read, and not because of what is in it: see :mod:`ka_ray.storage.read_errors`.

    It has a type of its own because another node may be able to read the file.
    """


USER_ERRORS = (InputError, FloatingPointError, ClusterError, ReadError)
"""The errors that a user can resolve: with other input, with a lower learning rate (``FloatingPointError``: a
value became infinite or NaN), or by running the command again."""

EXIT_BAD_INPUT = 2
"""Exit code of a command that cannot work as it was given; argparse and click use the same code."""

EXIT_TRY_AGAIN = 75
"""Exit code of a command whose machines failed; it may succeed next time. EX_TEMPFAIL of sysexits.h."""

EXIT_INTERRUPTED = 130
"""Exit code of a command that was stopped by Ctrl-C: 128 and the number of SIGINT, as in shells."""


CONTROL_CHARACTERS = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Table for ``str.translate`` that makes control characters visible, except tabs and line breaks.

Names of files and classes can hold them, and on a terminal they would do more than be printed."""


def disk_full_error(error: BaseException) -> ClusterError | None:
    """Turn the operating system's "no space left on device" (ENOSPC) into an error for the user.

    Args:
        error: Any exception.

    Returns:
        The error to show, or None if the exception does not mean that a disk is full.
    """
    if not (isinstance(error, OSError) and error.errno == errno.ENOSPC):
        return None
    place = f" at {error.filename}" if error.filename else ""
    return ClusterError(
        f"the disk is full{place}; finished work is kept: free some space, then run the same command again"
    )


def user_message(error: BaseException) -> tuple[str, int] | None:
    """Return the message for the user and the exit code, for an exception that ended a command.

    Args:
        error: The exception that ended the command.

    Returns:
        The message and the exit code; None if the exception is a bug, so that its traceback is needed.
    """
    # A full disk is an OSError; any other OSError that reaches this point is a bug.
    user_error = disk_full_error(error) or error
    if not isinstance(user_error, USER_ERRORS):
        return None
    return str(user_error), EXIT_TRY_AGAIN if isinstance(user_error, ClusterError) else EXIT_BAD_INPUT


def run_with_exit_code(work: Callable[[], None]) -> int:
    """Call a command's function and return the command's exit code.

    Errors that the user can resolve are printed on standard error. Any other exception is raised again, so
    that Python prints its traceback and exits with code 1.

    Args:
        work: The command, as a function without arguments.

    Returns:
        0 if the function returned, :data:`EXIT_BAD_INPUT` or :data:`EXIT_TRY_AGAIN` otherwise.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows letters that it lacks as escapes; by default, Python would raise.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        work()
    except SystemExit as ended:
        if ended.code == EXIT_INTERRUPTED:  # Typer makes it of Ctrl-C, and says nothing
            print("stopped; a command with an output folder goes on if it is run again", file=sys.stderr)
        raise
    except Exception as error:
        message_and_code = user_message(error)
        if verbosity().json:
            message, code = message_and_code or (f"{type(error).__name__}: {error}", 1)
            print(json.dumps({"error": message, "exit_code": code}, indent=2))
        if message_and_code is None:
            raise
        if verbosity().debug:
            traceback.print_exception(error)
        message, code = message_and_code
        # Not on standard output: it holds only results, which may be piped into another program.
        print(f"error: {message.translate(CONTROL_CHARACTERS)}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):  # such as the path of a log
            print(note, file=sys.stderr)
        return code
    return 0
