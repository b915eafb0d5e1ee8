"""Change settings of the whole process temporarily, so that a library call leaves them as they were."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def environment_restored(change: Callable[[], None]) -> Iterator[None]:
    """Call a function that changes environment variables, and restore them when the block ends.

    Variables that only the block changes stay as it leaves them.
    """
    before = dict(os.environ)
    changed = dict[str, str | None]()
    try:
        try:
            change()
        finally:
            names = before.keys() | os.environ.keys()
            changed = {n: before.get(n) for n in names if before.get(n) != os.environ.get(n)}
        yield
    finally:
        for name, value in changed.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def set_missing(variables: Mapping[str, str]) -> None:
    """Set environment variables that the user has not set."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


@contextmanager
def log_level(name: str, level: int) -> Iterator[None]:
    """Set the level of a logger, and restore it when the block ends.

    Args:
        name: The name of the logger.
        level: The level inside the block.
    """
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def attributes(target: Any, **values: Any) -> Iterator[None]:
    """Set attributes of an object, and restore them when the block ends.

    Args:
        target: The object.
        values: Name of each attribute -> its value inside the block.
    """
    before = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
