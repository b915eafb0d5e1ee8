"""The resources of each process of a pass over images, and how many processes there are."""

from dataclasses import dataclass, field
from typing import Any

from ka_ray.config import (
    Config,
    ExtractConfig,
    Resources,
    TeachConfig,
)
from ka_ray.distributed.capacity import Demand, shortage
from ka_ray.distributed.cluster import current_hosts
from ka_ray.distributed.placement import STANDARD, Placement


@dataclass(frozen=True)
class Pools:
    """The processes of a pass over images.

    Attributes:
        extract: Batch size, actors per teacher, reducers, and the memory between them.
        placement: The resources of each process.
        max_failures: How often a process that died is started again in one pass.
    """

    extract: ExtractConfig = field(default_factory=ExtractConfig)
    placement: Placement = STANDARD
    max_failures: int = 3

    def downstream_resources(self, num_teachers: int, num_actors: int = 1) -> Resources:
        """Return the resources of each actor behind the teachers.

        They are those of a teacher, without a GPU if the teachers leave none.

        Args:
            num_teachers: The number of teachers.
            num_actors: The number of actors behind them.
        """
        share = self.placement.teachers
        count = num_teachers * self.extract.actors_per_teacher + num_actors
        fit = shortage("all of them", [Demand("actors", count, share, "")], current_hosts()) is None
        return share if fit else share.model_copy(update={"gpu": 0.0})

    def evaluators(self, num_teachers: int) -> tuple[int, Resources]:
        """Choose how many actors evaluate behind the teachers, and the resources of each.

        They are as many as a teacher has actors, because a student costs about as much as a teacher: with
        fewer, the teachers would wait for them. They are fewer, at least one, where the nodes that are alive
        have no room for them beside the teachers and a task of decoding. They get a GPU if the teachers leave
        one: fewer of them on GPUs are preferred to more on CPUs.

        Args:
            num_teachers: Number of teachers; 0 if students are evaluated without teachers.
        """
        most, share, hosts = self.extract.actors_per_teacher, self.placement.teachers, current_hosts()
        others = [
            Demand("teachers", num_teachers * most, share, ""),
            Demand("decoding", 1, self.placement.decoding, ""),
        ]
        without_gpu = share.model_copy(update={"gpu": 0.0})
        for resources in (share, without_gpu):
            for count in range(most, 0, -1):
                demands = [*others, Demand("evaluators", count, resources, "")]
                if shortage("evaluation", demands, hosts) is None:
                    return count, resources
        return 1, without_gpu  # on a cluster that grows, Ray adds nodes for it


def pools_of(config: Config | TeachConfig, placement: Placement) -> Pools:
    """Return the pools of a run.

    Args:
        config: The config of the run.
        placement: The resources of each process, as chosen for the cluster of the run.
    """
    return Pools(config.extract, placement, config.ray.max_failures)


def remote_options(share: Resources) -> dict[str, Any]:
    """Return the arguments of Ray and Ray Data that give a process its share of the cluster.

    Only arguments that Ray Data names itself: others are its `ray_remote_args`, which Ray removes in 2.64.
    """
    options: dict[str, Any] = {"num_cpus": share.cpu, "num_gpus": share.gpu}
    options |= {"resources": dict(share.resources)} if share.resources else {}
    return options | ({"label_selector": dict(share.label)} if share.label else {})
