"""Measure what the processes of a pass over images do, and tell the pass's monitor."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ka_ray.stopwatch import Item, timed


@contextmanager
def record_work(monitor: Any, kind: str) -> Iterator[None]:
    """Record how long the block takes.

    Args:
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
        kind: What is done, for the user.
    """
    began = time.perf_counter()
    yield
    monitor.record_work.remote(kind, time.perf_counter() - began)


def record_items(items: Iterable[Item], monitor: Any, kind: str) -> Iterator[Item]:
    """Yield items, and record how long making them took, without what is done with them.

    Args:
        items: The items, which are made one by one; none of them is None.
        monitor: As in :func:`record_work`.
        kind: As in :func:`record_work`.
    """
    seconds = list[float]()
    yield from timed(items, seconds.append)
    monitor.record_work.remote(kind, sum(seconds))
