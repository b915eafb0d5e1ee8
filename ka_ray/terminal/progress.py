"""Show progress: bars on a terminal, otherwise ``key=value`` lines after epochs, stages and every 30 s."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from ka_ray.errors import CONTROL_CHARACTERS
from ka_ray.terminal.bars import StageBars, TerminalConsole, format_duration
from ka_ray.terminal.streams import error_stream, progress_stream
from ka_ray.terminal.usage import UsageMeter
from ka_ray.verbosity import verbosity

if TYPE_CHECKING:  # importing it would load torch, which following a job on a cluster does not need
    from ka_ray.training.fit import Progress

RUN_URL_PREFIX = "mlflow: "
"""Prefix of the line with the address at which a browser shows the run; `ka-ray submit` finds it in logs."""

PRINT_INTERVAL_S = 30.0
"""Seconds between the progress lines of a stage if the output is not a terminal."""

_PROGRESS = re.compile(
    r"(?P<stage>\S.{0,80}?) (?P<unit>images|trials|epoch)=(?P<done>\d+)(?:/(?P<total>\d+))?(?: |$)"
)
"""A progress line that this module printed in another process; a stage's last line has no total."""


class Display:
    """Shows the progress of a run while its ``with`` block runs.

    Args:
        meter: Measures the memory and the GPUs that the run uses; None: they are not shown, because the run
            is on another machine, or too short.
    """

    def __init__(self, meter: UsageMeter | None = None) -> None:
        chosen, stream = verbosity(), progress_stream()
        self._quiet, self._meter = chosen.quiet, meter
        # None stands for what standard output is at the time: a notebook replaces it.
        self._console = TerminalConsole(None if stream is sys.stdout else stream)
        self._terminal = self._console.is_terminal and not (chosen.quiet or chosen.json)
        self._bars = StageBars(self._console, meter, redirects=stream is sys.stdout)
        self._shown: set[str] = set()
        self._seconds: dict[tuple[str, int], float] = {}  # of a stage, up to the end of an attempt

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
        if not self._quiet:
            self._console.print(text.translate(CONTROL_CHARACTERS), markup=False, emoji=False)

    def warn(self, text: str) -> None:
        """Print a text that the user should see even with ``--quiet``."""
        if self._quiet:
            print(f"warning: {text.translate(CONTROL_CHARACTERS)}", file=error_stream(), flush=True)
        else:
            self.note(text)

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
            self._bar(stage, done, total, _rate(done, now - began, unit))
            if not self._terminal and now - printed >= PRINT_INTERVAL_S:
                printed = now
                left = (now - began) * (total - done) / max(done, 1)
                self._line(f"{stage} {unit}={done}/{total} seconds={now - began:.1f}", left)

        self._bar(stage, 0, total, "")
        yield advance
        seconds = time.perf_counter() - began
        if self._terminal:
            self._finish(stage, f"{done:,} {unit} in {format_duration(seconds)}", _rate(done, seconds, unit))
        else:
            self.note(f"{stage} {unit}={done} seconds={seconds:.1f}")

    def forward_line(self, text: str) -> None:
        """Print a line of a run in another process; on a terminal, its progress moves the stage's bar."""
        self.note(text)
        progress = _PROGRESS.match(text)
        # Without a total it is the last line of a stage; if there is no bar for it, it is other text.
        if progress is None or not (progress["total"] or progress["stage"] in self._shown):
            return
        stage, done = progress["stage"], int(progress["done"])
        total = int(progress["total"] or done)
        self._bar(stage, done, total, text[progress.end() :])
        if done == total:
            self._remove(stage)

    def show_training(self, progress: "Progress") -> None:
        """Show the progress of a training stage: on a terminal after every step, otherwise after epochs."""
        stage, attempt = progress.stage, progress.attempt
        if attempt > 1 and (stage, attempt) not in self._seconds:
            self.note(f"{stage}: no epoch is better than the start; again from the start, at a lower rate")
        self._seconds[stage, attempt] = progress.seconds
        spent = progress.seconds - self._seconds.get((stage, attempt - 1), 0.0)
        losses = " ".join(f"{name}={value:.4g}" for name, value in progress.losses.items())
        done, total = (progress.epoch - 1) * progress.steps + progress.step, progress.epochs * progress.steps
        speed = _rate(progress.images, progress.seconds, "images")
        if self._terminal:
            self._bar(progress.stage, done, total, f"{speed} {losses}")
            if done == total:
                took = f"{progress.epochs} epochs in {format_duration(progress.seconds)}"
                self._finish(progress.stage, took, f"{speed} {losses}")
        elif progress.epoch_ended:
            # `forward_line` of another process parses this line: see _PROGRESS.
            self._line(
                f"{progress.stage} epoch={progress.epoch}/{progress.epochs} images={progress.images} "
                f"seconds={progress.seconds:.1f}",
                spent * (total - done) / max(done, 1),
                losses,
            )

    def _line(self, text: str, left_s: float, losses: str = "") -> None:
        usage = "" if self._meter is None else self._meter.read().fields
        self.note(" ".join(filter(None, (text, f"eta_s={left_s:.0f}", usage, losses))))

    def _bar(self, stage: str, done: int, total: int, info: str) -> None:
        self._shown.add(stage)
        if self._terminal:
            self._bars.update(stage, done, total, info)

    def _finish(self, stage: str, took: str, info: str) -> None:
        """Replace the bar of a stage by a line that stays."""
        self._remove(stage)
        self.note(f"{stage:<12} {took}, {info}"[: self._console.width])

    def _remove(self, stage: str) -> None:
        self._shown.discard(stage)
        self._bars.remove(stage)


def _rate(done: int, seconds: float, unit: str) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s"
