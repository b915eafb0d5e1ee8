"""Find the message for the user in the errors that Ray wraps around it, and recognise lost workers."""

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

from ka_ray.errors import USER_ERRORS, ClusterError, InputError, ReadError, disk_full_error


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
    ReadError,
)
"""Errors that mean lost workers, nodes or connections; the last three also come from storage: another node
may be able to read what this one could not."""

LOST_TRAINING = {"WorkerHealthCheckFailedError", "WorkerHealthCheckTimeoutError", "PreemptionError"}
LOST_TRAINING |= {"WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError"}
LOST_TRAINING |= {"DistBackendError", "DistNetworkError", "DistStoreError"}
"""Errors of Ray Train and torch.distributed that mean lost workers or connections, too.

They are recognised by name, because importing Ray Train's classes takes seconds.
"""

COLLECTIVE = re.compile(
    r"gloo/|\bnccl\b|connection (was likely )?(closed|reset|refused)|broken pipe|time[d ]*out", re.I
)
"""Messages of torch.distributed if another rank has died or does not connect."""

NO_SPACE = (OutOfDiskError, ObjectStoreFullError)
"""Errors that mean that Ray can neither store nor spill an object."""


def unwrap(error: BaseException) -> BaseException:
    """Find the error in a chain that is meant for the user; return the given error if there is none."""
    for inner in _chain(error):
        for kind in USER_ERRORS:
            if type(inner) is kind:
                return inner
            # An error that was passed on between processes twice is only text: the last line of a traceback
            # in the message of another error.
            quoted = re.findall(rf"^(?:[\w.]+\.)?{kind.__name__}: (.+)$", str(inner), re.MULTILINE)
            if quoted:
                return kind(quoted[-1])
    return _disk_or_memory_error(error) or error


def _disk_or_memory_error(error: BaseException) -> BaseException | None:
    """Return a clear error if a disk or memory ran out; None otherwise."""
    for inner in _chain(error):
        text = str(inner)
        quoted = re.search(r"No space left on device(?:: '([^']+)')?", text)  # of Python or Arrow
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
                f"processes share it, in the config's placement section ({last_line(text)})"
            )
    return None


def lost(error: BaseException) -> bool:
    """Return whether workers, nodes or connections were lost, so that another attempt may succeed."""
    return any(_is_lost(inner) for inner in _chain(error))


def preempted(error: BaseException) -> bool:
    """Return whether a node was taken away after a notice, as providers do with spot nodes."""
    return any(type(inner).__name__ == "PreemptionError" for inner in _chain(error))


def _is_lost(error: BaseException) -> bool:
    name = type(error).__name__
    if isinstance(error, LOST) or name in LOST_TRAINING:
        # An actor whose __init__ raised an error would raise it again.
        return not getattr(error, "actor_init_failed", False)
    # As in `unwrap`: an error that was passed on twice is only text.
    names = f"{RestartsExhausted.__name__}|{ReadError.__name__}"
    if re.search(rf"^(?:[\w.]+\.)?({names}): ", str(error), re.MULTILINE):
        return True
    # An error that says in the words of this project what was lost is final; it may mention `ray.timeout_s`.
    if type(error) is ClusterError:
        return False
    return isinstance(error, RuntimeError) and bool(COLLECTIVE.search(f"{name} {error}"))


def mentions(error: BaseException, text: str) -> bool:
    """Return whether an error, or one that it wraps, has a text in its message.

    Args:
        error: The error.
        text: The text to find.
    """
    return any(text in str(inner) for inner in _chain(error))


def cause_of_death(error: BaseException) -> str | None:
    """Return why an actor died, if an error reports the death of an actor; else None."""
    dead = (inner for inner in _chain(error) if isinstance(inner, RayActorError))
    return next((_reason(str(inner)) for inner in dead), None)


def _reason(text: str) -> str:
    """Shorten Ray's message about a dead actor to the cause of death."""
    # Ray mentions the OOM killer as a possible cause in every message of an unexpected death. Only these
    # phrases mean that it was the cause.
    out_of_memory = re.search(r"due to the node (OOM|running low on memory)|OutOfMemoryError", text)
    return "its node ran out of memory" if out_of_memory else last_line(text)


def last_line(text: str) -> str:
    """Return the last line of a text that is not empty."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and all errors that it wraps or was caused by, the outermost first."""
    if error is None:
        return
    yield error
    # Ray Train's errors are recognised by their attributes: importing their classes takes seconds.
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _chain(failure)
    for inner in (getattr(error, "controller_failure", None), getattr(error, "cause", None), error.__cause__):
        if isinstance(inner, BaseException) and inner is not error:
            yield from _chain(inner)
