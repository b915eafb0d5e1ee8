"""Bound how often the worker processes of a pass over images are started again.

Ray Data restarts an actor that died, and repeats a task whose process died, without a limit: a teacher that
always runs out of memory would loop for ever. Ray's limits (``max_restarts``, ``max_retries``) reach an actor
or a task of Ray Data only through ``ray_remote_args`` or ``ray_remote_args_fn``, which Ray removes in 2.64,
and no other argument replaces them. So every process counts its own starts in the pass's monitor, and refuses
to work when there were too many.
"""

from typing import Any, NamedTuple

import ray

from ka_ray.distributed.failures import RestartsExhausted

OUT_OF_MEMORY = "NODE_OUT_OF_MEMORY"
"""Ray's exit type of a process that it killed because its node was nearly out of memory."""

STATE_TIMEOUT_S = 10
"""Seconds to wait for each answer of Ray's state API."""


class Restartable(NamedTuple):
    """A kind of process that is started again when it dies.

    Attributes:
        what: The subject of an error message: ``teacher low: its actor``.
        remedy: What the user can change so that it no longer dies.
    """

    what: str
    remedy: str


TASK_REMEDY = "lower extract.shard_mib, or raise placement.decoding.cpu so that fewer tasks share a node"
ACTOR_REMEDY = (
    "lower extract.batch_size or extract.actors_per_teacher, or raise placement.teachers.cpu so that fewer "
    "actors share a node"
)
READING = Restartable("reading images: a task", TASK_REMEDY)
WRITING = Restartable("writing shards: a task", TASK_REMEDY)


def actor_of(owner: str) -> Restartable:
    """Describe an actor of a Ray Data actor pool by the pool's owner, such as ``teacher low``."""
    return Restartable(f"{owner}: its actor", ACTOR_REMEDY)


class StartCount:
    """Counts, on construction, a start of this actor or of one piece of this task's work.

    An actor keeps the count and calls :meth:`check` at every batch; it must not fail in its constructor. When
    an actor of Ray Data's pools dies without a batch in flight, the pool neither replaces it nor fails (Ray
    2.60), and the pass would wait for ever.

    Args:
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
        process: What is started.
        piece: Id of this piece of the task's work, such as a chunk's first image id, the same in every
            attempt; None in an actor.

    Attributes:
        exhausted: Whether this start is one too many.
    """

    def __init__(self, monitor: Any, process: Restartable, piece: object = None) -> None:
        context = ray.get_runtime_context()
        # Both ids stay the same when Ray restarts the actor or repeats the task; a new pass has new ones.
        self._actor = context.get_actor_id() if piece is None else None
        unit = self._actor or f"{context.get_task_id()} {piece}"
        self._monitor = monitor
        self._problem = f"{process.what} died too often ({unit})"
        self.exhausted: bool = ray.get(monitor.count_start.remote(process, unit, context.get_worker_id()))

    def check(self) -> None:
        """Report progress, or refuse to work after too many starts: an actor exits for good, a task raises.

        Raises:
            RestartsExhausted: This start was one too many.
        """
        if self.exhausted and self._actor is not None:
            # Not by an error: its traceback would keep Ray Data's handle of the actor, and the handle keeps
            # the actor alive together with its CPUs and GPUs, which the next pass may need.
            ray.actor.exit_actor()
        if self.exhausted:
            raise RestartsExhausted(self._problem)
        if self._actor is not None:  # the start of a task was its report
            self._monitor.record_progress.remote()


def why_died(worker_ids: list[str]) -> str:
    """Return why worker processes died, as far as Ray knows.

    Args:
        worker_ids: Ray's ids of the processes, all of the connected cluster.
    """
    from ray.util import state  # here, because only a pass that failed needs it

    address, reason = ray.get_runtime_context().gcs_address, "Ray does not know why"
    for worker_id in worker_ids:
        try:
            worker = state.get_worker(worker_id, address=address, timeout=STATE_TIMEOUT_S)
        except Exception as error:
            # The state API asks the dashboard over HTTP, which may be switched off. The error is then one of
            # the package `requests` or one of Ray.
            return f"Ray's dashboard does not say why: {type(error).__name__}"
        if worker is not None and worker.exit_type == OUT_OF_MEMORY:
            return "its node ran out of memory"
        if worker is not None and worker.exit_detail:
            # Ray appends a list of common causes, which names the OOM killer whatever the cause was.
            reason = worker.exit_detail.split(" Some common causes include")[0].strip()
    return reason
