"""Connect to Ray, and check that a plan fits the cluster before anything is started on it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.data import DataContext
from ray.exceptions import AuthenticationError

from ka_ray.config import Config, PlacementConfig, RayConfig, Resources, TeachConfig
from ka_ray.distributed.capacity import CPU, GPU, Demand, Host, shortage
from ka_ray.distributed.placement import (
    Placement,
    Workload,
    describe_choice,
    first_shortage,
    fit_placement,
    pass_demands,
    standard_placement,
    training_demands,
    trial_demands,
)
from ka_ray.distributed.process_state import (
    attributes,
    environment_restored,
    log_level,
    set_missing,
)
from ka_ray.errors import InputError

SMALL_MACHINE = {
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


@dataclass(frozen=True)
class Cluster:
    """What the connected cluster has.

    Attributes:
        hosts: Its nodes.
        grows: Whether nodes are added on demand, so that what there is now says little.
    """

    hosts: tuple[Host, ...]
    grows: bool = False

    def total(self, resource: str) -> float:
        """How much of a resource all nodes have together."""
        return sum(host.resources.get(resource, 0.0) for host in self.hosts)

    @property
    def size(self) -> dict[str, float]:
        """The numbers of nodes, CPUs and GPUs."""
        return {"nodes": len(self.hosts), "cpus": self.total(CPU), "gpus": self.total(GPU)}


@contextmanager
def connect(config: RayConfig) -> Iterator[Cluster]:
    """Connect to the configured or surrounding cluster, or start Ray on this machine for the time being.

    An already connected Ray is used as it is and left running. At the end the settings of this process are
    what they were before: warning filters, log levels, environment variables, Ray Data's context.

    Raises:
        InputError: No cluster answers, or it refuses the token.
    """
    with ExitStack() as undo:
        undo.enter_context(warnings.catch_warnings())
        if not ray.is_initialized():
            undo.enter_context(log_level("ray", logging.ERROR))
            undo.enter_context(environment_restored(lambda: _init(config)))
            undo.callback(ray.shutdown)
        # Ray Data's bars and messages would be printed between the lines of the run's own progress display.
        undo.enter_context(log_level("ray.data", logging.ERROR))
        quiet = {"enable_progress_bars": False, "print_on_execution_start": False}
        undo.enter_context(attributes(DataContext.get_current(), **quiet))
        yield Cluster(current_hosts(), _grows() if config.autoscaling is None else config.autoscaling)


def current_hosts() -> tuple[Host, ...]:
    """The nodes that are alive now."""
    return tuple(
        Host(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    )


def _grows() -> bool:
    """Whether an autoscaler told Ray which nodes it may add.

    Ray has no public way to ask (2.60); Ray Train and Ray Data ask the same. `ray.autoscaling` in the config
    says it without asking. `tests/distributed/test_private_api.py` checks that the function is still there.
    """
    limits: Any = ray._private.state.state.get_max_resources_from_cluster_config()
    return bool(limits)


def _init(config: RayConfig) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    if address.startswith("http"):
        raise InputError(
            f"ray.address {address}: is where a cluster takes jobs; send it one with `ka-ray submit`, or "
            "give the cluster's own address (host:port, of `ray start`)"
        )
    # Without an address Ray itself takes that of RAY_ADDRESS, which a submitted job has; if there is none
    # either, it starts a cluster on this machine. A cluster that is already there has its own settings.
    here = config.address is None and "RAY_ADDRESS" not in os.environ
    if here:
        set_missing(SMALL_MACHINE)
    try:
        ray.init(
            address=config.address,
            num_cpus=config.num_cpus if here else None,
            num_gpus=config.num_gpus if here else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (AuthenticationError, ConnectionError) as error:
        raise InputError(
            f"ray.address {address}: no cluster answers there, or it refuses this shell's token "
            f"(RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH): {error}"
        ) from None


@dataclass(frozen=True)
class ResourcePlan:
    """What a run uses of the cluster that it is connected to.

    Attributes:
        placement: The resources of each process.
        ray: The ``ray`` section of the config, with the number of training workers filled in.
        notes: What the user should know about what was chosen.
    """

    placement: Placement
    ray: RayConfig
    notes: tuple[str, ...] = ()


def plan_resources(config: Config | TeachConfig, cluster: Cluster) -> ResourcePlan:
    """Choose the resources and the number of workers that a config leaves open, and check the whole plan.

    Raises:
        InputError: What the user set can never start on the cluster, so that Ray would wait for ever. The
            message has the arithmetic and the keys to lower.
    """
    num_teachers = len(config.teachers) if isinstance(config, Config) else 1
    load = Workload(num_teachers, config.extract, config.ray)
    plan = choose_resources(config.placement, load, cluster)
    _check(training_demands(plan.placement.trainers, plan.ray), cluster)
    _check(pass_demands(plan.placement.teachers, plan.placement.decoding, load), cluster)
    return plan


def choose_resources(config: PlacementConfig, load: Workload, cluster: Cluster) -> ResourcePlan:
    """Choose the resources and the number of workers that are left open; see :func:`fit_placement`.

    A cluster that grows gets the standard ones: it adds nodes for them. GPUs are used unasked on one machine
    only, since others may use a cluster of several nodes, too.
    """
    if cluster.grows:
        return ResourcePlan(standard_placement(config), _with_workers(load.ray, load.ray.worker_range[0]))
    num_gpus = _free_gpus(cluster)
    placement, workers = fit_placement(config, load, cluster.hosts, num_gpus)
    notes = (
        describe_choice(config, load.ray, placement, workers),
        _describe_unused_gpus(config, placement, cluster, num_gpus),
    )
    return ResourcePlan(placement, _with_workers(load.ray, workers), tuple(filter(None, notes)))


def _with_workers(config: RayConfig, workers: int) -> RayConfig:
    return config if config.workers is not None else config.model_copy(update={"workers": workers})


def _free_gpus(cluster: Cluster) -> int:
    """Return how many GPUs may be used unasked: on one machine those that torch can use, too."""
    found = int(cluster.total(GPU))
    return min(found, torch.cuda.device_count()) if found and len(cluster.hosts) == 1 else 0


def _describe_unused_gpus(
    config: PlacementConfig, placement: Placement, cluster: Cluster, num_gpus: int
) -> str | None:
    """Return why processes run without a GPU although the cluster has some; None if the user chose so."""
    found = int(cluster.total(GPU))
    without = [
        f"placement.{name}.gpu"
        for name in ("teachers", "trainers")
        if getattr(config, name).gpu is None and getattr(placement, name).gpu == 0
    ]
    if not found or not without:
        return None
    reason = "there are fewer GPUs than ray.workers"
    if not num_gpus:
        reason = "torch finds none" if len(cluster.hosts) == 1 else "set it on a cluster of several nodes"
    return f"Ray has {found} GPUs, but {' and '.join(without)} is null and becomes 0: {reason}"


def shortage_of_workers(config: RayConfig, share: Resources) -> str | None:
    """Say why the nodes that are alive do not hold the least number of training workers; None if they do."""
    return first_shortage(training_demands(share, config), current_hosts())


def workers_with_room(config: RayConfig, share: Resources) -> tuple[int, int]:
    """The range of workers to ask Ray Train for.

    Its elastic groups count room on nodes of any label (Ray 2.60), and then wait for workers that no labelled
    node holds: with labels, at most as many are asked for as fit when the group starts.
    """
    least, most = config.worker_range
    if share.label:
        hosts = current_hosts()
        while most > least and shortage("", [Demand("", most, share, "")], hosts) is not None:
            most -= 1
    return least, most


def check_trial_fits(resources: ResourcePlan, cluster: Cluster) -> None:
    """Refuse a trial that the cluster can never start; see :func:`plan_resources`."""
    _check(trial_demands(resources.placement.trials), cluster)


def _check(demands: dict[str, list[Demand]], cluster: Cluster) -> None:
    problem = None if cluster.grows else first_shortage(demands, cluster.hosts)
    if problem is not None:
        raise InputError(problem)
