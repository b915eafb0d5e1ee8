"""Choose the resources that a config leaves open, and check the whole plan against the cluster."""

from dataclasses import dataclass, replace

from ka_ray.config import Config, PlacementConfig, RayConfig, Resources, TeachConfig
from ka_ray.distributed.capacity import GPU, Demand, share_gpus, shortage
from ka_ray.distributed.cluster import Cluster, current_hosts
from ka_ray.distributed.own_process import (
    check_own_process,
    own_demands,
    own_resources,
    trains_in_own_process,
)
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
from ka_ray.errors import InputError


@dataclass(frozen=True)
class ResourcePlan:
    """What a run uses of the cluster that it is connected to.

    Attributes:
        placement: The resources of each process.
        ray: The ``ray`` section of the config, with the number of training workers filled in; 0: the command
            trains by itself.
        notes: What the user should know about what was chosen.
    """

    placement: Placement
    ray: RayConfig
    notes: tuple[str, ...] = ()


def plan_resources(config: Config | TeachConfig, cluster: Cluster) -> ResourcePlan:
    """Choose the resources and the number of workers that a config leaves open, and check the whole plan.

    Args:
        config: The config of the run.
        cluster: The cluster that the run is connected to.

    Raises:
        InputError: What the user set can never start on the cluster, so that Ray would wait for ever. The
            message has the arithmetic and the keys to lower.
    """
    load = Workload(1, config.extract, config.ray)
    if isinstance(config, Config):
        load = replace(load, num_teachers=len(config.teachers))
        if config.scores.descriptive is not None:
            called = "networks (teachers and scores.descriptive)"
            load = replace(load, num_teachers=load.num_teachers + 1, called=called)
    if config.ray.workers == 0:
        check_own_process(config.placement.trainers, cluster)
    plan = choose_resources(config.placement, load, cluster)
    _check_gpus_of_workers(plan)
    is_own = plan.ray.workers == 0
    trainers = plan.placement.trainers
    _check(own_demands(trainers) if is_own else training_demands(trainers, plan.ray), cluster)
    _check(pass_demands(plan.placement.teachers, plan.placement.decoding, load), cluster)
    return plan


def _check_gpus_of_workers(plan: ResourcePlan) -> None:
    """Refuse training workers two of which may get the same GPU, before they fail with NCCL's own words."""
    trainers, most = plan.placement.trainers, plan.ray.worker_range[1]
    if share_gpus(trainers, most):
        raise InputError(
            f"placement.trainers.gpu: {trainers.gpu:g} puts two of the {plan.ray.workers_text} on one GPU, "
            "but they are ranks of NCCL, which refuses two ranks on one GPU; set it to 1, or to 0 for CPUs, "
            "or set ray.workers: 1"
        )


def choose_resources(config: PlacementConfig, load: Workload, cluster: Cluster) -> ResourcePlan:
    """Choose the resources and the number of workers that are left open; see :func:`fit_placement`.

    On a cluster that grows, the standard ones are chosen, because it adds nodes for them. GPUs that the
    config does not ask for are used only on one machine: other users may share a cluster of several nodes.

    Args:
        config: The ``placement`` section of the config.
        load: What runs at the same time.
        cluster: The cluster that the run is connected to.
    """
    if cluster.grows:
        return ResourcePlan(standard_placement(config), _with_workers(load.ray, load.ray.worker_range[0]))
    num_gpus = _free_gpus(cluster)
    if load.ray.workers is None and trains_in_own_process(config.trainers, cluster, num_gpus):
        load = replace(load, ray=load.ray.model_copy(update={"workers": 0}))
    placement, workers = fit_placement(config, load, cluster.hosts, num_gpus)
    about_size = describe_choice(config, load.ray, placement, workers)
    if load.ray.workers == 0:
        placement = replace(placement, trainers=own_resources(config.trainers, cluster, num_gpus))
    notes = about_size, _describe_unused_gpus(config, placement, cluster, num_gpus)
    return ResourcePlan(placement, _with_workers(load.ray, workers), tuple(filter(None, notes)))


def _with_workers(config: RayConfig, workers: int) -> RayConfig:
    return config if config.workers is not None else config.model_copy(update={"workers": workers})


def _free_gpus(cluster: Cluster) -> int:
    """Return how many GPUs may be used if the config asks for none.

    On one machine these are the GPUs that both Ray and torch find; on a cluster of several nodes, none.
    """
    import torch  # here, because tasks that read or write images import this module, and torch takes seconds

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


def shortage_of_workers(config: RayConfig, resources: Resources) -> str | None:
    """Return why the live nodes have no room for the smallest number of training workers; None if they have.

    Args:
        config: The ``ray`` section, with the number of workers.
        resources: The resources of each worker.
    """
    return first_shortage(training_demands(resources, config), current_hosts())


def workers_with_room(config: RayConfig, resources: Resources) -> tuple[int, int]:
    """Return the smallest and the largest number of workers to request from Ray Train.

    Ray's elastic groups count room on nodes of any label (Ray 2.60), and then wait for workers that fit on no
    labelled node. With labels, the largest number is therefore what fits when the group starts.

    Args:
        config: The ``ray`` section, with the number of workers.
        resources: The resources of each worker.
    """
    least, most = config.worker_range
    if resources.label:
        hosts = current_hosts()
        # The empty texts only matter in the message, which is not shown here.
        while most > least and shortage("", [Demand("", most, resources, "")], hosts) is not None:
            most -= 1
    return least, most


def check_trial_fits(resources: ResourcePlan, cluster: Cluster) -> None:
    """Check that the cluster has room for a trial of a search.

    Args:
        resources: The plan of the run.
        cluster: The cluster that the run is connected to.

    Raises:
        InputError: The cluster can never start a trial.
    """
    _check(trial_demands(resources.placement.trials), cluster)


def _check(demands: dict[str, list[Demand]], cluster: Cluster) -> None:
    problem = None if cluster.grows else first_shortage(demands, cluster.hosts)
    if problem is not None:
        raise InputError(problem)
