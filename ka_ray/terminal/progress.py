"""Show progress: bars on a terminal, otherwise ``key=value`` lines after epochs, stages and every 30 s."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from ka_ray.errors import CONTROL_CHARACTERS

if TYPE_CHECKING:  # importing it would load torch, which following a job on a cluster does not need
    from ka_ray.training.fit import Progress

RUN_URL_PREFIX = "mlflow: "
"""Prefix of the line with the address at which a browser shows the run; `ka-ray submit` finds it in logs."""

PRINT_INTERVAL_S = 30.0
"""Seconds between the progress lines of a stage if the output is not a terminal."""

MAX_INFO_LENGTH = 90
"""Maximum length of the text beside a bar: a stage has one loss per tap or layer, and there can be many."""

_PROGRESS = re.compile(
    r"(?P<stage>\S.{0,80}?) (?P<unit>images|trials|epoch)=(?P<done>\d+)(?:/(?P<total>\d+))?(?: |$)"
)
"""A progress line that this module printed in another process; a stage's last line has no total."""


class Display:
    """Shows the progress of a run while its ``with`` block runs."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._terminal = self._console.is_terminal
        # Names of stages may hold square brackets, which rich would take for its markup.
        name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=12))
        count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=11))
        elapsed = TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7))
        info = TextColumn("{task.fields[info]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        self._bars = Bars(name, BarColumn(12), count, elapsed, info, console=self._console, expand=True)
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> "Display":
        if self._terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._terminal:
            self._bars.stop()

    def note(self, text: str) -> None:
        """Print a text as it is; control characters in it, which names may hold, are made visible."""
        self._console.print(text.translate(CONTROL_CHARACTERS), markup=False, emoji=False)

    @contextmanager
    def track_images(self, stage: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Show how many images of a stage have been processed.

        Args:
            stage: Name of the stage.
            total: Number of images to process.
            unit: What is counted, if not images: a plural noun.

        Yields:
            A function to call with the number of images that were processed since the last call.
        """
        began = printed = time.perf_counter()
        done = 0

        def advance(more: int) -> None:
            nonlocal done, printed
            done += more
            now = time.perf_counter()
            rate = done / (now - began)
            self._bar(stage, done, total, f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s")
            if not self._terminal and now - printed >= PRINT_INTERVAL_S:
                printed = now
                self.note(f"{stage} {unit}={done}/{total} seconds={now - began:.1f}")

        self._bar(stage, 0, total, "")
        yield advance
        if not self._terminal:
            self.note(f"{stage} {unit}={done} seconds={time.perf_counter() - began:.1f}")

    def forward_line(self, text: str) -> None:
        """Print a line of a run in another process; on a terminal, its progress moves the stage's bar."""
        self.note(text)
        progress = _PROGRESS.match(text)
        # Without a total it is the last line of a stage; if there is no bar for it, it is other text.
        if progress is None or not (progress["total"] or progress["stage"] in self._tasks):
            return
        done = int(progress["done"])
        self._bar(progress["stage"], done, int(progress["total"] or done), "")

    def show_training(self, progress: "Progress") -> None:
        """Show the progress of a training stage: on a terminal after every step, otherwise after epochs."""
        losses = " ".join(f"{name}={value:.4g}" for name, value in progress.losses.items())
        if self._terminal:
            done = (progress.epoch - 1) * progress.steps + progress.step
            rate = f"{progress.images / progress.seconds:.0f} images/s"
            total = progress.epochs * progress.steps
            self._bar(progress.stage, done, total, f"{rate} {losses}"[:MAX_INFO_LENGTH])
        elif progress.epoch_ended:
            # `forward_line` of another process parses this line: see _PROGRESS.
            self.note(
                f"{progress.stage} epoch={progress.epoch}/{progress.epochs} images={progress.images} "
                f"seconds={progress.seconds:.1f} {losses}"
            )

    def _bar(self, stage: str, done: int, total: int, info: str) -> None:
        if not self._terminal:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, info="")
        self._bars.update(self._tasks[stage], completed=done, total=total, info=info)  # type: ignore[arg-type]
