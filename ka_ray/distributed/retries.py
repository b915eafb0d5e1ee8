"""Repeat passes over images after workers or nodes were lost: missing images are read again.

Ray Data restarts actors and repeats tasks within one execution of a dataset. When that is not enough (a
node is gone with rows that nobody else has, an actor died too often), the execution fails as a whole, and
Ray Data cannot resume it. Here a new one reads the images that have no row yet.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import ray

from ka_ray.distributed.failures import cause_of_death, last_line, lost, mentions, unwrap
from ka_ray.distributed.restarts import why_died
from ka_ray.errors import ClusterError
from ka_ray.images import Ids

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

MAX_IDLE_PASSES = 2
"""A run ends after this many consecutive passes without a new row.

The number is small because Ray has restarted dead actors within each pass already.
"""


def repeat_until_complete(
    wanted: Ids, find_rows: Callable[[], Ids], one_pass: Callable[[Ids], None], monitor: Any
) -> int:
    """Read images until each of them has a row, or is known to have none.

    Args:
        wanted: The ids of the images, sorted.
        find_rows: Returns the ids of the images that have a row.
        one_pass: Reads the images with the given ids; may fail half-way.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the passes.

    Returns:
        The number of passes.

    Raises:
        ClusterError: Several passes in a row produced no new row, with or without losing workers.
        Exception: The error that a worker raised itself.
    """
    missing, passes, idle = np.setdiff1d(wanted, find_rows()), 0, 0
    while len(missing):
        error = None
        try:
            one_pass(missing)
        except Exception as problem:
            error = problem
        left = np.setdiff1d(np.setdiff1d(wanted, find_rows()), ray.get(monitor.without_row.remote()))
        passes, idle = passes + 1, 0 if len(left) < len(missing) else idle + 1
        missing = left
        if error is not None and (not lost(error) or idle >= MAX_IDLE_PASSES):
            raise explain(error, monitor) from error
        if error is not None:
            logger.warning(
                "workers were lost, or could not read: %d images are read again (%s)",
                len(missing),
                last_line(str(error)),
            )
        if error is None and idle >= MAX_IDLE_PASSES:
            raise ClusterError(f"{len(missing)} images yield no row, for example the one of id {missing[0]}")
    return passes


def repeat_if_lost(work: Callable[[], Result], monitor: Any, max_failures: int) -> Result:
    """Repeat work that cannot resume, from its start, each time that workers are lost.

    Args:
        work: The work.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
        max_failures: How often workers may be lost.

    Raises:
        ClusterError: Workers were lost more often.
        Exception: The error that a worker raised itself.
    """
    for failures in range(max_failures + 1):
        try:
            return work()
        except Exception as error:
            # `unwrap` returns another error if a worker raised one for the user: it would be raised again.
            if not lost(error) or unwrap(error) is not error or failures == max_failures:
                raise explain(error, monitor) from error
            logger.warning("workers were lost; the pass starts again (%s)", last_line(str(error)))
    raise AssertionError("unreachable")


def explain(error: Exception, monitor: Any) -> BaseException:
    """Turn the error of a pass into one for the user: what a worker raised, or what died and why.

    Args:
        error: What the pass raised.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
    """
    user_error = unwrap(error)
    if user_error is not error or not lost(error):
        return user_error
    # Several tasks or actors may have died too often; the error tells which one of them ended the pass.
    for unit, (process, workers) in ray.get(monitor.exhausted.remote()).items():
        if mentions(error, unit):
            return ClusterError(
                f"{process.what} died {len(workers)} times ({why_died(workers)}). Most often that is memory: "
                f"{process.remedy}, or take larger nodes"
            )
    return ClusterError(f"workers were lost again and again: {cause_of_death(error) or error}")
