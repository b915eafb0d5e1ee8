"""Connect to Ray, and check that a plan fits the cluster before anything is started on it."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.data import DataContext

from ka_ray.config import Config, RayConfig, TuneConfig
from ka_ray.errors import InputError

TASK_CPUS = 0.25
"""CPUs of a task that reads images or writes features.

Other than a teacher actor's on purpose: Ray Data fuses stages of equal resources, and a fused read would
decode inside the teacher's actor, on its GPU's time.
"""

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
    """What the connected cluster has."""

    nodes: int
    cpus: float
    gpus: float


@contextmanager
def connect(config: RayConfig) -> Iterator[Cluster]:
    """Connect to the configured or surrounding cluster, or start Ray on this machine for the time being.

    An already connected Ray is used as it is and left running.
    """
    own = not ray.is_initialized()
    if own:
        _init(config)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        resources = ray.cluster_resources()
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        yield Cluster(nodes, resources.get("CPU", 0.0), resources.get("GPU", 0.0))
    finally:
        if own:
            ray.shutdown()


def _init(config: RayConfig) -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
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
    except ConnectionError as error:
        raise InputError(f"ray.address {config.address!r}: no cluster answers there ({error})") from None


def check_fits(config: Config, cluster: Cluster) -> None:
    """Refuse a plan that the cluster can never start; Ray would wait for ever.

    Raises:
        InputError: With the arithmetic, and the keys that lower it.
    """
    check_training_fits(config.ray, cluster)
    extract, teachers = config.extract, len(config.teachers)
    actors = teachers * extract.actors_per_teacher
    cpus = actors * extract.cpus_per_teacher + 2 * TASK_CPUS
    _compare(
        "extraction",
        f"{teachers} teachers x {extract.actors_per_teacher} actors x {extract.cpus_per_teacher:g} "
        f"+ {2 * TASK_CPUS:g} for reading and writing",
        ("CPUs", cpus, cluster.cpus),
        "extract.cpus_per_teacher or extract.actors_per_teacher",
    )
    _compare(
        "evaluation",
        f"({teachers} teachers x {extract.actors_per_teacher} actors + 1 for the student) "
        f"x {extract.cpus_per_teacher:g} + {TASK_CPUS:g} for reading",
        ("CPUs", (actors + 1) * extract.cpus_per_teacher + TASK_CPUS, cluster.cpus),
        "extract.cpus_per_teacher or extract.actors_per_teacher",
    )
    _compare(
        "summing",
        f"({teachers} teachers x {extract.actors_per_teacher} actors + {extract.reducers} reducers) "
        f"x {extract.cpus_per_teacher:g} + {TASK_CPUS:g} for reading",
        ("CPUs", (actors + extract.reducers) * extract.cpus_per_teacher + TASK_CPUS, cluster.cpus),
        "extract.reducers or extract.cpus_per_teacher",
    )
    _compare(
        "extraction",
        f"{teachers} teachers x {extract.actors_per_teacher} actors x {extract.gpus_per_teacher:g}",
        ("GPUs", actors * extract.gpus_per_teacher, cluster.gpus),
        "extract.gpus_per_teacher or extract.actors_per_teacher",
    )


def check_training_fits(config: RayConfig, cluster: Cluster) -> None:
    """Refuse more workers than the cluster can hold; see :func:`check_fits`."""
    for unit, each, has in (
        ("CPUs", config.cpus_per_worker, cluster.cpus),
        ("GPUs", config.gpus_per_worker, cluster.gpus),
    ):
        key = "ray.workers or ray." + unit.lower() + "_per_worker"
        _compare("training", f"{config.workers} workers x {each:g}", (unit, config.workers * each, has), key)


def check_trial_fits(config: TuneConfig, cluster: Cluster) -> None:
    """Refuse a trial that the cluster can never start; see :func:`check_fits`."""
    for unit, each, has in (
        ("CPUs", config.cpus_per_trial, cluster.cpus),
        ("GPUs", config.gpus_per_trial, cluster.gpus),
    ):
        _compare("a trial", f"{each:g}", (unit, each, has), f"tune.{unit.lower()}_per_trial")


def _compare(stage: str, arithmetic: str, amounts: tuple[str, float, float], keys: str) -> None:
    unit, needs, has = amounts
    if needs > has + 1e-9:
        raise InputError(
            f"the plan is larger than the cluster: {stage} needs {arithmetic} = {needs:g} {unit}, "
            f"the cluster has {has:g}; lower {keys}"
        )
