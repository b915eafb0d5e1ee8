"""Run one case of a fuzz test, and say how it ended: a result, one message, or something that is a bug."""

import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ka_ray.errors import user_message

TIME_LIMIT_S = 60
"""A case that takes longer counts as a hang."""

RESULT, MESSAGE, BUG = "result", "message", "bug"

MAX_MESSAGE_LINES = 40
"""A message of more lines is no message. The message about a config has a line for each of its mistakes."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: :data:`RESULT`, :data:`MESSAGE` or :data:`BUG`.
        text: The message; of a bug, the type of the exception, its place and its own words.
        case: What the case was.
    """

    kind: str
    text: str
    case: str


class Hang(BaseException):
    """The case took too long. No ``Exception``, because the code under test catches those."""


def run_case(case: str, work: Callable[[], Any], folder: Path) -> Outcome:
    """Run a case, and say how it ended.

    Args:
        case: What the case is, for the list of failures.
        work: The case.
        folder: The only folder in which the case may write.
    """
    try:
        with _time_limit(), _only_writes_in(folder) as outside:
            work()
        kind, text = RESULT, ""
    except Hang:
        return Outcome(BUG, f"hang of more than {TIME_LIMIT_S} s", case)
    except Exception as error:
        kind, text = _describe(error)
    if outside:
        return Outcome(BUG, f"wrote outside of its folder: {sorted(outside)[:3]}", case)
    return Outcome(kind, text, case)


def _describe(error: Exception) -> tuple[str, str]:
    message = user_message(error)
    if message is None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/ka_ray/" in frame.filename] or frames
        place = f"{Path(own[-1].filename).name}:{own[-1].name}"
        return BUG, f"{type(error).__name__} in {place}: {str(error)[:200]}"
    text = message[0]
    if not text.strip() or len(text.splitlines()) > MAX_MESSAGE_LINES:
        return BUG, f"no message, or too long a one: {text[:200]!r}"
    return MESSAGE, text


def describe_bugs(outcomes: Sequence[Outcome]) -> str:
    """Return the bugs of a fuzz test as text: how many of which kind, each with a case."""
    bugs = [outcome for outcome in outcomes if outcome.kind == BUG]
    kinds = Counter(outcome.text.partition(": ")[0] for outcome in bugs)
    lines = [f"{len(bugs)} of {len(outcomes)} cases end neither in a result nor in one message"]
    for kind, count in kinds.most_common():
        first = next(outcome for outcome in bugs if outcome.text.startswith(kind))
        lines.append(f"{count} x {first.text}\n      e.g. {first.case}")
    return "\n".join(lines)


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_watched: dict[str, Any] = {"folder": None, "outside": set()}
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = {"os.mkdir": 1, "os.remove": 1, "os.rmdir": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2}
"""Audit event -> number of its arguments, from the first, that are paths that it changes."""


def _watch_writes(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _watched["folder"]
    if folder is None:
        return
    if event == "open":
        path, _, flags = arguments
        paths = [path] if isinstance(flags, int) and flags & _WRITE_FLAGS else []
    else:
        paths = list(arguments[: _CHANGES.get(event, 0)])
    for path in paths:
        if not isinstance(path, str | bytes | os.PathLike):
            continue  # a file descriptor
        place = os.path.realpath(os.fsdecode(path))
        if not f"{place}/".startswith(f"{folder}/") and not place.startswith("/dev/"):
            _watched["outside"].add(place)


sys.addaudithook(_watch_writes)  # one for the whole process, because it cannot be removed


@contextmanager
def _only_writes_in(folder: Path) -> Iterator[set[str]]:
    """Collect the paths outside of a folder that Python writes to while the block runs."""
    _watched.update(folder=os.path.realpath(folder), outside=set())
    try:
        yield _watched["outside"]
    finally:
        _watched["folder"] = None
