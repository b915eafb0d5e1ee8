"""The streams that a command prints to, also while what libraries write goes to a log.

Ray's C++ code, MLflow and others write to the descriptors 1 and 2 of the process, where no logger and no
replaced ``sys.stderr`` catches it. During a run both descriptors lead to a log, and this package prints to
duplicates of the original ones.
"""

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from ka_ray.storage.files import exists, is_remote, read_text, write_text
from ka_ray.verbosity import verbosity

_duplicates: dict[int, TextIO] = {}
"""Descriptor 1 or 2 -> a stream on its duplicate, while it leads to a log."""


def output_stream() -> TextIO:
    """Return the stream for results and progress: standard output, also during a run."""
    return _duplicates.get(1, sys.stdout)


def error_stream() -> TextIO:
    """Return the stream for warnings and errors: standard error, also during a run."""
    return _duplicates.get(2, sys.stderr)


def progress_stream() -> TextIO:
    """Return the stream for progress: with ``--json``, standard output is kept for the result."""
    return error_stream() if verbosity().json else output_stream()


def print_progress(text: str) -> None:
    """Print what a command is doing, unless it is told to be quiet.

    Args:
        text: Lines for the user.
    """
    if not verbosity().quiet:
        print(text, file=progress_stream(), flush=True)


@contextmanager
def divert_descriptors(path: Path) -> Iterator[bool]:
    """Let the descriptors 1 and 2 of this process lead to a log, if the command line has asked for it.

    Only streams that are on these descriptors are diverted: those of notebooks and tests are on others.
    The descriptors lead where they did before when the block ends, however it ends.

    Args:
        path: The local or remote log; it is appended to.

    Yields:
        Whether anything is diverted.
    """
    streams = {1: sys.stdout, 2: sys.stderr}
    found = {number: stream for number, stream in streams.items() if _is_on(stream, number)}
    if not verbosity().diverts or verbosity().debug or _duplicates or not found:
        yield False
        return
    with ExitStack() as undo:
        try:
            log = undo.enter_context(_open_log(path))
        except OSError:  # a full disk, or a folder that cannot be written to; the run itself says so
            yield False
            return
        for number, stream in found.items():
            undo.enter_context(_diverted(number, stream, log))
        yield True


def _is_on(stream: TextIO | None, number: int) -> bool:
    """Return whether a stream writes to a descriptor; a replaced one has none, or another."""
    try:
        return stream is not None and stream.fileno() == number
    except (AttributeError, OSError, ValueError):  # io.UnsupportedOperation is both of the latter
        return False


@contextmanager
def _diverted(number: int, stream: TextIO, log: BinaryIO) -> Iterator[None]:
    stream.flush()
    original = os.dup(number)  # not inherited by the processes that are started in the meantime
    encoding = getattr(stream, "encoding", None) or "utf-8"
    duplicate = io.TextIOWrapper(
        os.fdopen(original, "wb", buffering=0), encoding, "backslashreplace", write_through=True
    )
    _duplicates[number] = duplicate
    os.dup2(log.fileno(), number)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.flush()  # what libraries have printed belongs to the log
        os.dup2(original, number)
        del _duplicates[number]
        with suppress(OSError):  # a reader that has closed its pipe
            duplicate.close()


@contextmanager
def _open_log(path: Path) -> Iterator[BinaryIO]:
    """Open a log for appending; one in an object store is written when the block ends."""
    if not is_remote(path):
        with path.open("ab", buffering=0) as log:
            yield log
        return
    with tempfile.TemporaryFile(buffering=0) as log:
        try:
            yield log
        finally:
            log.seek(0)
            text = log.read().decode(errors="backslashreplace")
            if text:
                with suppress(Exception):  # a store that is away: every file system raises its own kinds
                    write_text(path, (read_text(path) if exists(path) else "") + text)
