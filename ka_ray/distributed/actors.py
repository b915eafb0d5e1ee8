"""Small actors that the whole cluster talks to; they import only Ray's core, so that they start fast."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def beside_driver(actor: Any, *arguments: Any) -> Any:
    """Start an actor on the driver's node, so that it does not die with another node.

    Args:
        actor: The class of the actor.
        arguments: The arguments of its constructor.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here).remote(*arguments)


@ray.remote(num_cpus=0)
class PassMonitor:
    """Records, for the whole cluster, what happens in a pass over images.

    It knows which images were unreadable or yielded no row, where actors run, and how often each actor or
    piece of work of a task was started.

    Args:
        max_unreadable: How many images may be unreadable.
        max_restarts: How often an actor, or one piece of work of a task (such as a chunk of images), may be
            started again in one pass.
    """

    def __init__(self, max_unreadable: int, max_restarts: int) -> None:
        self._max_unreadable, self._max_restarts = max_unreadable, max_restarts
        self._workers: dict[str, list[str]] = {}  # unit -> the worker of each start, see `count_start`
        self._exhausted: dict[str, tuple[Any, list[str]]] = {}  # see `exhausted`
        self._unreadable: dict[int, str] = {}
        self._left_out = set[int]()
        self._placements: list[dict[str, Any]] = []
        self._work = dict[str, float]()
        self._last_progress = time.monotonic()

    def record_progress(self) -> None:
        """Record that a batch of images has come to an actor."""
        self._last_progress = time.monotonic()

    def record_work(self, kind: str, seconds: float) -> None:
        """Record that a process has done some work.

        Args:
            kind: What was done, for the user.
            seconds: How long it took.
        """
        self._work[kind] = self._work.get(kind, 0.0) + seconds
        self.record_progress()

    def idle_seconds(self) -> float:
        """Return for how long no process has started and no image has come any further."""
        return time.monotonic() - self._last_progress

    def record_unreadable(self, image_id: int, name: str) -> bool:
        """Record an unreadable image, and return whether there are now too many.

        Args:
            image_id: The id of the image; it is counted once, however often it is read.
            name: The name of the image, for the report.
        """
        self._unreadable[image_id] = name
        return len(self._unreadable) > self._max_unreadable

    def record_left_out(self, image_ids: Sequence[int]) -> None:
        """Record images that yield no row, because they are unreadable or of no wanted class."""
        self._left_out.update(image_ids)
        self.record_progress()

    def without_row(self) -> list[int]:
        """Return the ids of the images that yield no row."""
        return sorted(self._left_out)

    def record_placement(self, placement: dict[str, Any]) -> None:
        """Record where an actor runs."""
        self._placements.append(placement)

    def count_start(self, process: Any, unit: str, worker: str) -> bool:
        """Count a start of an actor, or of a piece of work of a task; return whether it is one too many.

        Args:
            process: What is started, a :class:`ka_ray.distributed.restarts.Restartable`.
            unit: The id of the actor or of the piece of work, the same at every start.
            worker: Ray's id of the worker process, another one at every start.
        """
        workers = self._workers.setdefault(unit, [])
        workers.append(worker)
        self.record_progress()
        too_often = len(workers) > self._max_restarts + 1
        if too_often:
            self._exhausted[unit] = process, workers[:-1]  # the dead ones: the last one is the caller
        return too_often

    def exhausted(self) -> dict[str, tuple[Any, list[str]]]:
        """Return what died too often: the unit -> what it is, and Ray's ids of its dead processes."""
        return self._exhausted

    def summary(self) -> dict[str, Any]:
        """Return the unreadable images, where the actors run, and the seconds of each kind of work."""
        unreadable = sorted(self._unreadable.values())
        return {"unreadable": unreadable, "placements": self._placements, "work": self._work}


@ray.remote(num_cpus=0)
class ReportQueue:
    """Carries reports from workers to the driver, as plain dicts.

    :class:`ka_ray.distributed.epoch_reports.WorkerReporter` explains why training does not report through Ray
    Train. `ray.util.queue.Queue` must be told how many entries to take; this class returns all of them in one
    call.
    """

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Add one report."""
        self._entries.append(entry)

    def take(self) -> list[dict[str, Any]]:
        """Return the reports that were added since the last call."""
        entries, self._entries = self._entries, []
        return entries
