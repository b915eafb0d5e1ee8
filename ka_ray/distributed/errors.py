"""Dig the one clear message out of what Ray wraps around an error in a worker."""

import re
from collections.abc import Iterator

from ka_ray.errors import MEANT_FOR_USERS


def unwrap(error: BaseException) -> BaseException:
    """Find the error that a worker raised for the user to read; give the given one where there is none."""
    for inner in _chain(error):
        for kind in MEANT_FOR_USERS:
            if type(inner) is kind:
                return inner
            # What crosses processes twice arrives as text alone: the last line of a quoted traceback.
            quoted = re.findall(rf"^(?:[\w.]+\.)?{kind.__name__}: (.+)$", str(inner), re.MULTILINE)
            if quoted:
                return kind(quoted[-1])
    return error


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
