"""Record where the time of a command goes."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

from ka_ray.reports.timeline import TimelineStep

Opened = TypeVar("Opened")


class Timeline:
    """Records the steps of a command, from the time at which it was made.

    Attributes:
        steps: The steps that have ended, in the order in which they ended.
    """

    def __init__(self) -> None:
        self.steps: list[TimelineStep] = []
        self._began = time.perf_counter()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record what runs in the block as a step. Steps do not overlap.

        Args:
            name: What is done.
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self.steps.append(TimelineStep(step=name, began=began - self._began, seconds=seconds))

    @contextmanager
    def entering(self, name: str, manager: AbstractContextManager[Opened]) -> Iterator[Opened]:
        """Enter a context, and record only that as a step.

        Args:
            name: What entering it does.
            manager: The context.
        """
        with ExitStack() as opened:
            with self.step(name):
                value = opened.enter_context(manager)
            yield value
