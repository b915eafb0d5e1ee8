"""Keep what Ray logs in this process off the terminal: it goes to a file, with the tracebacks of errors."""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ka_ray.errors import USER_ERRORS
from ka_ray.storage.files import exists, is_remote, read_text, write_text
from ka_ray.verbosity import verbosity

LISTENER = "ray_listen_error_messages"
"""The name of Ray's thread that prints what other processes of the cluster report, such as dead workers."""


@contextmanager
def log_errors(path: Path) -> Iterator[None]:
    """Write what Ray logs to a file instead of the terminal; on an error, its traceback, too.

    An error that ends the block gets a note with the path of the file, if the file says more than its
    message: what Ray or a process of the cluster logged, or the errors that it wraps.

    With ``--debug``, Ray's lines go to the terminal, too.

    Args:
        path: The file; it is made only if there is something to write, and earlier content is kept.
    """
    log = _LogFile(path)
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    try:
        with _without_terminal(handler), _redirected_listener(log):
            yield
    except Exception as error:
        # An error whose message already says what the error before it said is raised `from None`.
        hidden = None if error.__suppress_context__ else error.__context__
        if error.__cause__ or hidden or not isinstance(error, USER_ERRORS):
            log.write("".join(traceback.format_exception(error)))
        if log.close():
            error.add_note(f"log: {path}")
        raise
    log.close()


class _LogFile:
    """A text file that is made at the first write, and whose failures do not hide the error that is logged.

    Args:
        path: The local or remote file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._text, self._failed = path, "", False

    def write(self, text: str) -> int:
        """Append a text; to a remote file only when it is closed."""
        header = "" if self._text else f"--- {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n"
        self._text += header + text
        if not is_remote(self._path):
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(header + text)
            except OSError:  # a full disk
                self._failed = True
        return len(text)

    def flush(self) -> None:
        """Do nothing: every text is written at once."""

    def close(self) -> bool:
        """Write what is left, and return whether there is a log to read."""
        if self._text and is_remote(self._path):
            try:
                before = read_text(self._path) if exists(self._path) else ""
                write_text(self._path, before + self._text)
            except Exception:  # a store that is away: every file system raises its own kinds
                self._failed = True
        return bool(self._text) and not self._failed


@contextmanager
def _without_terminal(handler: logging.Handler) -> Iterator[None]:
    """Replace the handlers of Ray's loggers that write to the terminal."""
    names = ["ray", *(name for name in logging.root.manager.loggerDict if name.startswith("ray."))]
    before = {logger: list(logger.handlers) for logger in map(logging.getLogger, names)}
    for logger, handlers in before.items():
        on_terminal = [each for each in handlers if _prints(each) and not verbosity().debug]
        if on_terminal or logger.name == "ray":
            logger.handlers = [*(each for each in handlers if each not in on_terminal), handler]
    try:
        yield
    finally:
        for logger, handlers in before.items():
            logger.handlers = handlers


def _prints(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)


class _ListenerRedirect:
    """Standard error, except for what Ray's listener thread prints.

    Args:
        terminal: Standard error.
        log: Gets the listener's lines.
    """

    def __init__(self, terminal: TextIO, log: _LogFile) -> None:
        self._terminal, self._log = terminal, log

    def write(self, text: str) -> int:
        """Write a text where it belongs."""
        listens = threading.current_thread().name == LISTENER and not verbosity().debug
        return (self._log if listens else self._terminal).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


@contextmanager
def _redirected_listener(log: _LogFile) -> Iterator[None]:
    before, redirect = sys.stderr, _ListenerRedirect(sys.stderr, log)
    sys.stderr = redirect
    try:
        yield
    finally:
        if sys.stderr is redirect:  # not if somebody else has replaced it in the meantime
            sys.stderr = before
