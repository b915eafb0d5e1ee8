"""How much memory a run takes, and how busy the GPUs of this machine are."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from ka_ray.terminal.nvidia import Gpu, find_driver

MIN_INTERVAL_S = 5.0
"""Seconds for which a measurement is used again: looking at processes takes some milliseconds."""

GIB = 1024**3


@dataclass(frozen=True)
class Usage:
    """What a run uses of this machine.

    Attributes:
        memory: Bytes of memory of this process and those that it has started, without files and memory
            that they share; None if the operating system does not tell.
        gpus: The GPUs of this machine, with what all processes use of them.
    """

    memory: int | None = None
    gpus: tuple[Gpu, ...] = ()

    @property
    def fields(self) -> str:
        """The usage as ``key=value`` pairs; empty if nothing is known."""
        pairs = [] if self.memory is None else [f"memory_gib={self.memory / GIB:.2f}"]
        if self.gpus:
            pairs += [f"gpu_busy={self._busy:.2f}", f"gpu_memory_gib={self._used:.1f}"]
        return " ".join(pairs)

    @property
    def text(self) -> str:
        """The usage for people; empty if nothing is known."""
        parts = [] if self.memory is None else [f"memory {self.memory / GIB:.1f} GiB"]
        if self.gpus:
            gpus = "GPU" if len(self.gpus) == 1 else f"{len(self.gpus)} GPUs"
            total = sum(gpu.total for gpu in self.gpus) / GIB
            parts.append(f"{gpus} {100 * self._busy:.0f} % busy, {self._used:.1f} of {total:.0f} GiB")
        return ", ".join(parts)

    @property
    def _busy(self) -> float:
        return sum(gpu.busy for gpu in self.gpus) / len(self.gpus)

    @property
    def _used(self) -> float:
        return sum(gpu.used for gpu in self.gpus) / GIB


class UsageMeter:
    """Measures the usage, but not more often than every :data:`MIN_INTERVAL_S` seconds.

    Args:
        measure: Measures it.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, measure: Callable[[], Usage] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._measure, self._clock = measure or measure_usage, clock
        self._usage, self._measured_at = Usage(), -MIN_INTERVAL_S - 1

    def read(self) -> Usage:
        """Return the usage now, or a moment ago."""
        now = self._clock()
        if now - self._measured_at >= MIN_INTERVAL_S:
            self._usage, self._measured_at = self._measure(), now
        return self._usage


def measure_usage() -> Usage:
    """Measure the usage now; what cannot be measured is left out."""
    driver = find_driver()
    try:
        gpus = () if driver is None else driver.gpus()
    except OSError:  # a GPU that has failed
        gpus = ()
    return Usage(measure_memory(os.getpid()), gpus)


def measure_memory(process: int) -> int | None:
    """Return the bytes of memory of a process and all that it has started, without what they share.

    Args:
        process: The id of the process.

    Returns:
        The sum; None if there is no such process.
    """
    try:
        first = psutil.Process(process)
        found = [_measure_own_memory(one) for one in (first, *first.children(recursive=True))]
    except psutil.NoSuchProcess:
        return None
    return sum(found)


def _measure_own_memory(process: psutil.Process) -> int:
    """Return the bytes of a process that are neither files nor shared; 0 if it has ended by now."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))
