"""Show progress: bars on a terminal, elsewhere one ``key=value`` line an epoch or stage and now and then."""

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

if TYPE_CHECKING:  # it would load torch, which who follows a job elsewhere does not need
    from ka_ray.training.fit import Progress

RUN_URL_PREFIX = "mlflow: "
"""Begins the line with the address under which a browser shows the run."""

EVERY_S = 30.0
"""Without a terminal a stage says so often how far it is."""

_PROGRESS = re.compile(
    r"(?P<stage>\S.{0,80}?) (?P<unit>images|trials|epoch)=(?P<done>\d+)(?:/(?P<total>\d+))?(?: |$)"
)


class Display:
    """A context that shows what runs."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._terminal = self._console.is_terminal
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
        """Say one line."""
        self._console.print(text, markup=False, emoji=False)

    @contextmanager
    def track_images(self, stage: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Count images (or what else) through a stage; gives what to call with how many more are done."""
        began = said = time.perf_counter()
        done = 0

        def advance(more: int) -> None:
            nonlocal done, said
            done += more
            now = time.perf_counter()
            rate = done / (now - began)
            self._bar(stage, done, total, f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s")
            if not self._terminal and now - said >= EVERY_S:
                said = now
                self._console.print(f"{stage} {unit}={done}/{total} seconds={now - began:.1f}")

        self._bar(stage, 0, total, "")
        yield advance
        if not self._terminal:
            self._console.print(f"{stage} {unit}={done} seconds={time.perf_counter() - began:.1f}")

    def line(self, text: str) -> None:
        """Pass on a line that a run printed elsewhere; on a terminal a bar shows where its stage stands."""
        self.note(text)
        progress = _PROGRESS.match(text)
        if progress is None or not (progress["total"] or progress["stage"] in self._tasks):
            return
        done = int(progress["done"])
        self._bar(progress["stage"], done, int(progress["total"] or done), "")

    def training(self, progress: "Progress") -> None:
        """Show where a training stage stands."""
        losses = " ".join(f"{name}={value:.4g}" for name, value in progress.losses.items())
        if self._terminal:
            done = (progress.epoch - 1) * progress.steps + progress.step
            rate = f"{progress.images / progress.seconds:.0f} images/s"
            total = progress.epochs * progress.steps
            self._bar(progress.stage, done, total, f"{rate} {losses}"[:90])
        elif progress.epoch_ended:
            self._console.print(
                f"{progress.stage} epoch={progress.epoch}/{progress.epochs} images={progress.images} "
                f"seconds={progress.seconds:.1f} {losses}"
            )

    def _bar(self, stage: str, done: int, total: int, info: str) -> None:
        if not self._terminal:
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, info="")
        self._bars.update(self._tasks[stage], completed=done, total=total, info=info)  # type: ignore[arg-type]
