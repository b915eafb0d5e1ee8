"""Training in the process of the command itself: on one machine, with its cores or one GPU.

Starting a group of Ray Train workers takes seconds, because every worker imports torch. It is worth that
where there are several machines or GPUs. A Ray that the command has started itself, on a machine without
them, has nothing else to do while one process trains with all cores.
"""

from ka_ray.config import Resources, ResourcesConfig
from ka_ray.distributed.capacity import CPU, Demand
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.placement import Demands
from ka_ray.errors import InputError


def trains_in_own_process(config: ResourcesConfig, cluster: Cluster, num_gpus: int) -> bool:
    """Return whether the command trains by itself if the config gives no number of workers.

    On a cluster that was there before, others may have its cores and GPUs, which only Ray knows.

    Args:
        config: The config's ``placement.trainers``. Who sets GPUs, labels or custom resources there wants Ray
            to find a place for training.
        cluster: The cluster that the run is connected to.
        num_gpus: Number of GPUs that training may use where the config does not say.
    """
    is_placed = bool(config.gpu or config.label or config.resources)
    return cluster.own and not cluster.grows and not is_placed and (num_gpus < 2 or config.gpu == 0)


def own_resources(config: ResourcesConfig, cluster: Cluster, num_gpus: int) -> Resources:
    """Return what the command trains with: all CPUs of the only node, and one GPU if there is one.

    Args:
        config: The config's ``placement.trainers``; what is set there counts.
        cluster: The cluster that the run is connected to.
        num_gpus: Number of GPUs that training may use where the config does not say.
    """
    return Resources(
        cpu=config.cpu or cluster.total(CPU) or 1,
        gpu=min(num_gpus, 1) if config.gpu is None else config.gpu,
    )


def own_demands(trainers: Resources) -> Demands:
    """Return what training in the command needs, while nothing else runs.

    Args:
        trainers: The resources of the command.
    """
    return {"training": [Demand("1 process", 1, trainers, "placement.trainers.cpu")]}


def check_own_process(config: ResourcesConfig, cluster: Cluster) -> None:
    """Check that the command can train by itself, which ``ray.workers: 0`` asks for.

    Args:
        config: The config's ``placement.trainers``.
        cluster: The cluster that the run is connected to.

    Raises:
        InputError: There are several nodes, or the trainers are to have what only Ray can give them.
    """
    if len(cluster.hosts) > 1 or cluster.grows:
        raise InputError(
            "ray.workers: 0 trains in the process of the command, which uses one machine, but this cluster "
            f"{'grows' if cluster.grows else f'has {len(cluster.hosts)} nodes'}; give a number of workers"
        )
    if config.gpu or config.label or config.resources:
        raise InputError(
            "ray.workers: 0 trains in the process of the command, which Ray gives no resources: remove gpu, "
            "label and resources from placement.trainers (it takes the GPU that torch finds), or set "
            "ray.workers: 1"
        )
