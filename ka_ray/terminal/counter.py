"""Count on standard error while results go to standard output."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ka_ray.verbosity import verbosity

QUIET_SECONDS = 2.0
"""Work that takes less shows nothing."""


class Counter:
    """Shows a number that grows, while its ``with`` block runs.

    Only if standard error is a terminal, and standard output is not: results on the same terminal show by
    themselves how far the work is.

    Args:
        what: What is counted, a plural noun.

    Attributes:
        count: The number.
    """

    def __init__(self, what: str) -> None:
        self._what, self.count, self._began = what, 0, time.perf_counter()
        self._visible = False
        self._shown = sys.stderr.isatty() and not sys.stdout.isatty() and not verbosity().quiet
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task("")

    def __enter__(self) -> "Counter":
        return self

    def advance(self, more: int = 1) -> None:
        """Add to the number."""
        self.count += more
        seconds = time.perf_counter() - self._began
        if not self._shown or seconds < QUIET_SECONDS:
            return
        self._progress.start()  # does nothing if it has started
        self._visible = True
        text = f"{self.count:,} {self._what}, {self.count / seconds:.0f}/s"
        self._progress.update(self._task, description=text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._visible:
            self._progress.stop()
