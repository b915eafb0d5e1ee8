"""Connect to Ray, and check that a plan fits the cluster before anything is started on it."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import DataContext
from ray.exceptions import AuthenticationError

from ka_ray.config import Config, ExtractConfig, PlacementConfig, RayConfig, Resources
from ka_ray.distributed.capacity import CPU, GPU, Demand, Host, shortage
from ka_ray.errors import InputError

SMALL_MACHINE = {
    # Starting a worker process costs seconds (it imports torch); on one machine idle ones are kept.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_num_workers_soft_limit": "16",
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

    An already connected Ray is used as it is and left running.

    Raises:
        InputError: No cluster answers, or it refuses the token.
    """
    own = not ray.is_initialized()
    if own:
        _init(config)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # How often an actor starts anew has no parameter of its own in Ray Data yet.
    warnings.filterwarnings("ignore", message=r".*ray_remote_args")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield Cluster(current_hosts(), _grows() if config.autoscaling is None else config.autoscaling)
    finally:
        if own:
            ray.shutdown()


def current_hosts() -> tuple[Host, ...]:
    """The nodes that are alive now."""
    return tuple(
        Host(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    )


def _grows() -> bool:
    """Whether an autoscaler told Ray which nodes it may add; Ray Train asks the same."""
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
    here = config.address is None and "RAY_ADDRESS" not in os.environ
    if here:
        for name, value in SMALL_MACHINE.items():
            os.environ.setdefault(name, value)
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


def check_fits(config: Config, cluster: Cluster) -> None:
    """Refuse a plan that the cluster can never start; Ray would wait for ever.

    Raises:
        InputError: With the arithmetic, and the keys that lower it.
    """
    check_training_fits(config.ray, config.placement, cluster)
    names = [teacher.name for teacher in config.teachers]
    for stage, demands in demands_of_passes(config.extract, config.placement, len(names)).items():
        _check(stage, demands, cluster)


def demands_of_passes(
    extract: ExtractConfig, placement: PlacementConfig, num_teachers: int
) -> dict[str, list[Demand]]:
    """What runs at the same time in each kind of pass over images."""
    share = placement.teachers
    downstream = share.model_copy(
        update={"gpu": 0}
    )  # what is behind the teachers takes a GPU only if one is left
    teachers = Demand(
        f"{num_teachers} teachers x {extract.actors_per_teacher} actors",
        num_teachers * extract.actors_per_teacher,
        share,
        "placement.teachers or extract.actors_per_teacher",
    )
    decoding = Demand("1 task of decoding", 1, placement.decoding, "placement.decoding")
    writing = Demand("1 task of writing", 1, placement.decoding, "placement.decoding")
    judge = Demand("1 student", 1, downstream, "placement.teachers.cpu")
    reducers = Demand(f"{extract.reducers} reducers", extract.reducers, downstream, "extract.reducers")
    return {
        "extraction": [teachers, decoding, writing],
        "evaluation": [teachers, judge, decoding],
        "summing": [teachers, reducers, decoding],
    }


def check_training_fits(config: RayConfig, placement: PlacementConfig, cluster: Cluster) -> None:
    """Refuse more workers than the cluster can hold; see :func:`check_fits`."""
    least = config.worker_range[0]
    workers = Demand(f"{least} workers", least, placement.trainers, "ray.workers or placement.trainers")
    _check("training", [workers], cluster)


def shortage_of_workers(config: RayConfig, share: Resources) -> str | None:
    """Say why the nodes that are alive do not hold the least number of training workers; None if they do."""
    least = config.worker_range[0]
    workers = Demand(f"{least} workers", least, share, "ray.workers or placement.trainers")
    return shortage("training", [workers], current_hosts())


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


def check_trial_fits(placement: PlacementConfig, cluster: Cluster) -> None:
    """Refuse a trial that the cluster can never start; see :func:`check_fits`."""
    _check("the search", [Demand("1 trial", 1, placement.trials, "placement.trials")], cluster)


def _check(stage: str, demands: Sequence[Demand], cluster: Cluster) -> None:
    problem = None if cluster.grows else shortage(stage, demands, cluster.hosts)
    if problem is not None:
        raise InputError(problem)
