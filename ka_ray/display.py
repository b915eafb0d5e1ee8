"""Show progress: bars on a terminal, one ``key=value`` line an epoch or stage elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from ka_ray.training.fit import Progress


class Display:
    """A context that shows what runs."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._terminal = self._console.is_terminal
        name = TextColumn("{task.description}", table_column=Column(no_wrap=True, min_width=12))
        count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=11))
        elapsed = TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7))
        info = TextColumn("{task.fields[info]}", table_column=Column(no_wrap=True, ratio=1))
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
        self._console.print(text)

    @contextmanager
    def images(self, stage: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Count images (or what else) through a stage; gives what to call with how many more are done."""
        began = time.perf_counter()
        done = 0

        def advance(more: int) -> None:
            nonlocal done
            done += more
            rate = done / (time.perf_counter() - began)
            self._bar(stage, done, total, f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s")

        self._bar(stage, 0, total, "")
        yield advance
        if not self._terminal:
            self._console.print(f"{stage} {unit}={done} seconds={time.perf_counter() - began:.1f}")

    def training(self, progress: Progress) -> None:
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
