"""The settings of a process that a library call could change; run as a script, it checks `connect`."""

import dataclasses
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import ray
from ray.data import DataContext

from ka_ray.config import RayConfig
from ka_ray.distributed.cluster import connect


def settings() -> dict[str, Any]:
    """Return warning filters, log levels, environment variables and the fields of Ray Data's context."""
    context = DataContext.get_current()
    loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    levels = {name: one.level for name, one in loggers.items() if isinstance(one, logging.Logger)}
    return {
        "filters": list(warnings.filters),
        "levels": {name: level for name, level in levels.items() if level != logging.NOTSET},
        "environment": dict(os.environ),
        "context": {one.name: repr(getattr(context, one.name)) for one in dataclasses.fields(context)},
    }


def check(how: str) -> None:
    """Start Ray, leave the block as told, and compare."""
    before = settings()
    with suppress(KeyError), connect(RayConfig(num_cpus=1)):
        changed = settings()
        assert sum(ray.data.range(2).to_pandas()["id"]) == 1
        if how == "raises":
            raise KeyError
    assert not ray.is_initialized()
    after = settings()
    for kind, values in before.items():
        assert after[kind] == values, (kind, after[kind])
        assert changed[kind] != values, f"{kind}: connect changes nothing, so this checks nothing"


if __name__ == "__main__":
    check(sys.argv[1])
