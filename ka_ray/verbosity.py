"""How much a command says and in which form: set by the command line, read by what prints or logs.

A library call has the defaults. In particular it never touches the descriptors of its host program.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Verbosity:
    """How much a command says.

    Attributes:
        quiet: Print only warnings, errors and the paths of results.
        json: Print one JSON object on standard output at the end, and everything else on standard error.
        debug: Print tracebacks of all errors, and what libraries log, on the terminal.
        diverts: Whether what libraries write to the standard descriptors goes to the log of a run.
    """

    quiet: bool = False
    json: bool = False
    debug: bool = False
    diverts: bool = False


_current = [Verbosity()]


def verbosity() -> Verbosity:
    """Return how much the command of this process says."""
    return _current[-1]


def choose_verbosity(quiet: bool, json: bool, debug: bool) -> None:
    """Add options to those that were given before; an option that is false changes nothing.

    Args:
        quiet: See :class:`Verbosity`.
        json: See :class:`Verbosity`.
        debug: See :class:`Verbosity`.
    """
    now = _current[-1]
    _current[-1] = replace(now, quiet=now.quiet or quiet, json=now.json or json, debug=now.debug or debug)


@contextmanager
def verbosity_of_command(start: Verbosity) -> Iterator[None]:
    """Begin a command with a verbosity; the one from before is back when the block ends.

    Args:
        start: The verbosity before the options of the command are read.
    """
    _current.append(start)
    try:
        yield
    finally:
        _current.pop()
