"""Connect to Ray, and find out what the cluster has."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext

from ka_ray.config import RayConfig
from ka_ray.config.module_folders import VARIABLE, module_folders
from ka_ray.distributed.capacity import CPU, GPU, Host
from ka_ray.distributed.opening_errors import opening_error
from ka_ray.distributed.process_state import (
    attributes,
    environment_restored,
    log_level,
    set_missing,
)
from ka_ray.distributed.ray_address import RayAddress, find_cluster
from ka_ray.verbosity import verbosity

LOCAL_RAY_VARIABLES = {
    # Starting a worker process costs seconds (it imports torch), and Ray ends idle ones after a second if
    # there are more of them than CPUs: every pass over a small set of images would wait for new ones.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "16",
    # With more teachers than cores, Ray would start their processes one by one, and warn of their number.
    "RAY_worker_maximum_startup_concurrency": str(max(8, os.cpu_count() or 1)),
    # Ray's own default by now; older releases warn that it will change.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Every actor pool of Ray Data logs an "error" that its actors may restart (ray-project/ray issue 53727).
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}
"""Environment variables for the Ray that is started on this machine, unless the user has set them."""


@dataclass(frozen=True)
class Cluster:
    """What the connected cluster has.

    Attributes:
        hosts: Its nodes.
        grows: Whether nodes are added on demand, so that a plan may be larger than the present nodes.
        own: Whether this command has started it, so that nobody else uses it.
    """

    hosts: tuple[Host, ...]
    grows: bool = False
    own: bool = False

    def total(self, resource: str) -> float:
        """Return how much of a resource all nodes have together."""
        return sum(host.resources.get(resource, 0.0) for host in self.hosts)

    @property
    def size(self) -> dict[str, float]:
        """The numbers of nodes, CPUs and GPUs."""
        return {"nodes": len(self.hosts), "cpus": self.total(CPU), "gpus": self.total(GPU)}


@contextmanager
def connect(config: RayConfig) -> Iterator[Cluster]:
    """Connect to the cluster of the config or of RAY_ADDRESS, or start Ray here until the block ends.

    An already connected Ray is used as it is and left running. At the end the settings of this process are
    what they were before: warning filters, log levels, environment variables, Ray Data's context.

    Raises:
        InputError: No cluster answers within 10 seconds, it has another version, it refuses the token, or Ray
            cannot start on this machine.
        ClusterError: Ray could not be opened, for a cause that may pass.
    """
    level, own = _log_level(), False
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        if not ray.is_initialized():
            undo.enter_context(log_level("ray", level))
            address = find_cluster(config)
            own = address.starts_here
            undo.enter_context(environment_restored(lambda: _init(config, address)))
            undo.callback(ray.shutdown)
        # Ray Data's bars and messages would be printed between the lines of the run's own progress display.
        undo.enter_context(log_level("ray.data", level))
        quiet = {"enable_progress_bars": False, "print_on_execution_start": False}
        undo.enter_context(attributes(DataContext.get_current(), **quiet))
        grows = _grows() if config.autoscaling is None else config.autoscaling
        yield Cluster(current_hosts(), grows, own)


def check_cluster(config: RayConfig) -> None:
    """Check that the cluster to connect to answers; takes at most 10 seconds.

    Args:
        config: The config's ``ray`` section.

    Raises:
        InputError: See :func:`ka_ray.distributed.ray_address.find_cluster`.
    """
    if not ray.is_initialized():
        find_cluster(config)


def current_hosts() -> tuple[Host, ...]:
    """Return the nodes that are alive now."""
    return tuple(
        Host(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    )


def _grows() -> bool:
    """Return whether an autoscaler has told Ray which nodes it may add.

    Ray has no public function for this (2.60); Ray Train and Ray Data call the same private one. It is not
    called if the config sets `ray.autoscaling`. `tests/distributed/test_private_api.py` checks that it is
    still there.
    """
    limits: Any = ray._private.state.state.get_max_resources_from_cluster_config()
    return bool(limits)


def _log_level() -> int:
    return logging.INFO if verbosity().debug else logging.ERROR


def _init(config: RayConfig, address: RayAddress) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    if address.starts_here:
        # Factories in these folders are imported by the workers, too. A cluster has its own copies.
        set_missing(LOCAL_RAY_VARIABLES | {VARIABLE: os.pathsep.join(module_folders())})
    try:
        ray.init(
            # Ray looks for a token of its own only if it finds the running cluster itself.
            address=None if address.found_here else address.value,
            # A cluster that is already there has its own settings.
            num_cpus=config.num_cpus if address.starts_here else None,
            num_gpus=config.num_gpus if address.starts_here else None,
            log_to_driver=verbosity().debug,
            logging_level=_log_level(),
        )
    except Exception as error:  # ray.init raises OSError, ValueError, RuntimeError, ConnectionError, ...
        ray.shutdown()  # what it has opened already
        raise opening_error(error, str(address)) from error
