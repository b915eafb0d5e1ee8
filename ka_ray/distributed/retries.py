"""Passes over images that outlive lost workers and nodes: what is missing afterwards is read again.

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
"""So many passes in a row without one new row end a run; actors have been started again within each."""


def repeat_until_complete(
    wanted: Ids, stands: Callable[[], Ids], one_pass: Callable[[Ids], None], log: Any
) -> int:
    """Read images until each has a row, or is known to have none.

    Args:
        wanted: Image ids, sorted.
        stands: Gives the ids that have a row.
        one_pass: Reads the images with some ids; may fail half-way.
        log: A :class:`ka_ray.distributed.actors.PassMonitor`.

    Returns:
        How many passes it took.

    Raises:
        ClusterError: Workers were lost again and again, without a row in between.
        Exception: What a worker raised by itself.
    """
    missing, passes, idle = np.setdiff1d(wanted, stands()), 0, 0
    while len(missing):
        error = None
        try:
            one_pass(missing)
        except Exception as problem:
            error = problem
        left = np.setdiff1d(np.setdiff1d(wanted, stands()), ray.get(log.without_row.remote()))
        passes, idle = passes + 1, 0 if len(left) < len(missing) else idle + 1
        missing = left
        if error is not None and (not lost(error) or idle >= MAX_IDLE_PASSES):
            raise explain(error, log) from error
        if error is not None:
            logger.warning(
                "workers were lost; %d images are read again (%s)", len(missing), last_line(str(error))
            )
        if error is None and idle >= MAX_IDLE_PASSES:
            raise ClusterError(f"{len(missing)} images give no row, among them that with id {missing[0]}")
    return passes


def repeat_if_lost(work: Callable[[], Result], log: Any, max_failures: int) -> Result:
    """Do something that cannot go on where it stood, again from its start, as long as workers are lost.

    Raises:
        ClusterError: They were lost more often than ``max_failures``.
        Exception: What a worker raised by itself.
    """
    for failures in range(max_failures + 1):
        try:
            return work()
        except Exception as error:
            if not lost(error) or unwrap(error) is not error or failures == max_failures:
                raise explain(error, log) from error
            logger.warning("workers were lost; the pass begins anew (%s)", last_line(str(error)))
    raise AssertionError("unreachable")


def explain(error: Exception, log: Any) -> BaseException:
    """Turn the error of a pass into one for the user: what a worker raised itself, or what died, and why.

    Args:
        error: What the pass raised.
        log: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
    """
    meant = unwrap(error)
    if meant is not error or not lost(error):
        return meant
    exhausted = ray.get(log.exhausted.remote())
    if exhausted is None or not mentions(error, exhausted[1]):
        return ClusterError(f"workers were lost again and again: {cause_of_death(error) or error}")
    process, _, workers = exhausted
    return ClusterError(
        f"{process.what} died {len(workers)} times ({why_died(workers)}). Most often that is memory: "
        f"{process.remedy}, or take larger nodes"
    )
