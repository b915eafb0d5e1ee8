"""Settings of a process that a library call could change. As a script: check that `connect` restores them."""

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


def read_settings() -> dict[str, Any]:
    """Return warning filters, log levels, environment variables and the fields of Ray Data's context."""
    context = DataContext.get_current()
    loggers = {"": logging.getLogger(), **logging.root.manager.loggerDict}
    levels = {name: logger.level for name, logger in loggers.items() if isinstance(logger, logging.Logger)}
    return {
        "filters": list(warnings.filters),
        "levels": {name: level for name, level in levels.items() if level != logging.NOTSET},
        "environment": dict(os.environ),
        "context": {field.name: repr(getattr(context, field.name)) for field in dataclasses.fields(context)},
    }


def assert_connect_restores_settings(how: str) -> None:
    """Start Ray in a block, and compare the settings before and after it.

    Args:
        how: How the block ends: "returns", or "raises" for an error.
    """
    before = read_settings()
    with suppress(KeyError), connect(RayConfig(num_cpus=1)):
        changed = read_settings()
        assert sum(ray.data.range(2).to_pandas()["id"]) == 1
        if how == "raises":
            raise KeyError
    assert not ray.is_initialized()
    after = read_settings()
    for kind, values in before.items():
        assert after[kind] == values, (kind, after[kind])
        assert changed[kind] != values, f"{kind}: connect does not change it, so this check is void"


if __name__ == "__main__":
    assert_connect_restores_settings(sys.argv[1])
