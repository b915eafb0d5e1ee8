"""Progress bars of stages, with the time that is left, above a line with the use of memory and GPUs."""

import os
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import TextIO

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ka_ray.terminal.usage import UsageMeter

MAX_INFO_LENGTH = 90
"""Maximum length of the text beside a bar: a stage has one loss per tap or layer, and there can be many."""


class TerminalConsole(Console):
    """A console whose size is that of its own stream's terminal; rich asks only the standard descriptors.

    Args:
        stream: The stream; None: standard output, as it is at the time of each line.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # In a notebook, rich would make every line an output of its own, with a margin. And the notebook says
        # that it is a terminal, but bars that move up again are not redrawn there.
        is_terminal = False if Console().is_jupyter else None
        super().__init__(
            file=stream, highlight=False, soft_wrap=True, force_jupyter=False, force_terminal=is_terminal
        )
        self._stream = stream

    @property
    def size(self) -> ConsoleDimensions:
        """The size of the terminal, in characters."""
        if self._stream is not None and self._width is None:
            try:
                return ConsoleDimensions(*os.get_terminal_size(self._stream.fileno()))
            except (OSError, ValueError):  # no terminal
                pass
        return super().size

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


class StageBars:
    """Bars of the stages that run now; a bar disappears when its stage has finished.

    Args:
        console: Where they are drawn.
        meter: Measures what the last line shows; None: there is no such line.
        redirects: Whether what the process prints meanwhile goes above the bars.
    """

    def __init__(self, console: Console, meter: UsageMeter | None, redirects: bool) -> None:
        # Names of stages may hold square brackets, which rich would take for its markup.
        name = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=12))
        count = MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=11))
        info = TextColumn("{task.fields[info]}", markup=False, table_column=Column(no_wrap=True, ratio=1))
        columns = (name, BarColumn(12), count, _TimeColumn(), info)
        self._bars = _BarsWithUsage(meter, *columns, console=console, redirects=redirects)
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def start(self) -> None:
        """Begin to draw."""
        self._bars.start()

    def stop(self) -> None:
        """Remove all bars from the terminal."""
        self._bars.stop()

    def update(self, stage: str, done: int, total: int, info: str) -> None:
        """Move the bar of a stage, which is made if there is none.

        Args:
            stage: Name of the stage.
            done: How much of it has been done.
            total: How much there is to do.
            info: What stands beside the bar.
        """
        now = time.perf_counter()
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, info="", left_s=None)
            self._began[stage] = now, done  # a resumed stage does not begin with nothing
        began, first = self._began[stage]
        left = (now - began) * (total - done) / (done - first) if done > first else None
        self._bars.update(
            self._tasks[stage], completed=done, total=total, info=info[:MAX_INFO_LENGTH], left_s=left
        )

    def remove(self, stage: str) -> None:
        """Remove the bar of a stage that has finished."""
        task = self._tasks.pop(stage, None)
        if task is not None:
            self._bars.remove_task(task)


class _TimeColumn(ProgressColumn):
    """The time that a stage has taken, and the time that it will probably still take."""

    def __init__(self) -> None:
        super().__init__(Column(no_wrap=True, min_width=7))

    def render(self, task: Task) -> Text:
        left = task.fields["left_s"]
        spent = format_duration(task.elapsed or 0)
        return Text(spent if left is None else f"{spent}, {format_duration(left)} left", "yellow")


class _BarsWithUsage(Progress):
    def __init__(
        self, meter: UsageMeter | None, *columns: ProgressColumn, console: Console, redirects: bool
    ) -> None:
        self._meter = meter
        super().__init__(
            *columns,
            console=console,
            expand=True,
            transient=True,
            redirect_stdout=redirects,
            redirect_stderr=redirects,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.tasks:
            yield from super().get_renderables()
            if self._meter is not None and (usage := self._meter.read().text):
                yield Text(usage, "bright_black", no_wrap=True, overflow="ellipsis")


def format_duration(seconds: float) -> str:
    """Return a time as people write it.

    Example:
        >>> format_duration(5.4), format_duration(125), format_duration(7322)
        ('0:05', '2:05', '2:02:02')
    """
    text = str(timedelta(seconds=round(seconds)))
    return text.removeprefix("0:").removeprefix("0") if text.startswith("0:0") else text.removeprefix("0:")
