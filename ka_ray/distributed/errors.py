"""Dig the one clear message out of what Ray wraps around an error in a worker."""

from collections.abc import Iterator

from ray.exceptions import RayError

from ka_ray.errors import InputError

MEANT_FOR_USERS = (InputError, FloatingPointError, ValueError)


def unwrap(error: BaseException) -> BaseException:
    """Find the error that a worker raised for the user to read; give the given one where there is none."""
    for inner in _chain(error):
        if isinstance(inner, InputError):
            return InputError(str(inner).splitlines()[-1] if isinstance(inner, RayError) else str(inner))
    for inner in _chain(error):
        if isinstance(inner, MEANT_FOR_USERS) and not isinstance(inner, RayError):
            return inner
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
