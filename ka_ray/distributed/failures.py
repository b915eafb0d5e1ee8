"""Dig the one clear message out of what Ray wraps around an error; tell lost workers from mistakes."""

import errno
import re
from collections.abc import Iterator

from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RaySystemError,
    WorkerCrashedError,
)

from ka_ray.errors import USER_ERRORS, ClusterError, InputError, disk_full_error


class RestartsExhausted(RuntimeError):
    """A worker process of a pass died more often than it may; the message names it."""


LOST = (
    RestartsExhausted,
    RayActorError,
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RaySystemError,
    WorkerCrashedError,
    ConnectionError,
    TimeoutError,
)
"""Also a store that did not answer."""

LOST_TRAINING = {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "PreemptionError"}
LOST_TRAINING |= {"WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError"}
LOST_TRAINING |= {"DistBackendError", "DistNetworkError", "DistStoreError"}
"""Ray Train's errors are known by their names: importing their classes takes seconds."""

COLLECTIVE = re.compile(
    r"gloo/|\bnccl\b|connection (was likely )?(closed|reset|refused)|broken pipe|time[d ]*out", re.I
)
"""What torch.distributed says where a peer is gone, or does not come."""

NO_SPACE = (OutOfDiskError, ObjectStoreFullError)


def unwrap(error: BaseException) -> BaseException:
    """Find the error that a worker raised for the user to read; give the given one where there is none."""
    for inner in _chain(error):
        for kind in USER_ERRORS:
            if type(inner) is kind:
                return inner
            # What crosses processes twice arrives as text alone: the last line of a quoted traceback.
            quoted = re.findall(rf"^(?:[\w.]+\.)?{kind.__name__}: (.+)$", str(inner), re.MULTILINE)
            if quoted:
                return kind(quoted[-1])
    return _exhausted(error) or error


def _exhausted(error: BaseException) -> BaseException | None:
    """Return a clear error if a disk or memory ran out; None otherwise."""
    for inner in _chain(error):
        text = str(inner)
        quoted = re.search(r"No space left on device(?:: '([^']+)')?", text)  # Python's words, or Arrow's
        full = disk_full_error(OSError(errno.ENOSPC, "No space left", quoted[1]) if quoted else inner)
        if full is not None:
            return full
        if isinstance(inner, NO_SPACE):
            return ClusterError(
                "the cluster's object store and the disk behind it are full; lower extract.object_store_gib "
                f"or extract.batch_size, or give the nodes more ({text.splitlines()[0]})"
            )
        if (type(inner).__name__ == "OutOfMemoryError" and "CUDA" in text) or "CUDA out of memory" in text:
            return InputError(
                "a GPU is out of memory; lower extract.batch_size or the stage's batch_size, or let fewer "
                f"processes share it: placement ({last_line(text)})"
            )
    return None


def lost(error: BaseException) -> bool:
    """Return whether workers, nodes or connections were lost, so that another attempt may succeed."""
    return any(_is_lost(inner) for inner in _chain(error))


def _is_lost(error: BaseException) -> bool:
    name = type(error).__name__
    if isinstance(error, LOST) or name in LOST_TRAINING:
        return not getattr(error, "actor_init_failed", False)  # what __init__ raised, it will raise again
    # What crosses processes twice arrives as text alone: a quoted traceback.
    if re.search(rf"^(?:[\w.]+\.)?{RestartsExhausted.__name__}: ", str(error), re.MULTILINE):
        return True
    return isinstance(error, RuntimeError) and bool(COLLECTIVE.search(f"{name} {error}"))


def mentions(error: BaseException, text: str) -> bool:
    """Return whether an error, or one that it wraps, has a text in its message.

    Args:
        error: The error.
        text: The text to find.
    """
    return any(text in str(inner) for inner in _chain(error))


def cause_of_death(error: BaseException) -> str | None:
    """Return why the actor died whose death an error reports; None where it reports no death."""
    dead = (inner for inner in _chain(error) if isinstance(inner, RayActorError))
    return next((_reason(str(inner)) for inner in dead), None)


def _reason(text: str) -> str:
    # Ray names the OOM killer among the possible causes of every unexpected end; here it is the cause.
    sure = re.search(r"due to the node (OOM|running low on memory)|OutOfMemoryError", text)
    return "its node ran out of memory" if sure else last_line(text)


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    if error is None:
        return
    yield error
    # Ray Train's errors are known by their attributes: importing their classes takes seconds.
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _chain(failure)
    for inner in (getattr(error, "controller_failure", None), getattr(error, "cause", None), error.__cause__):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _chain(inner)
