"""How many processes a pass over images has, and the resources of each."""

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
    """Settings of the actor pools and tasks of one pass over the images.

    Attributes:
        extract: The config's ``extract`` section: batch size, number of actors, limit of the object store.
        placement: The resources of each process.
        max_failures: How often a process that died is started again in one pass.
        timeout_s: Seconds without progress after which a pass ends, the config's ``ray.timeout_s``.
    """

    extract: ExtractConfig = field(default_factory=ExtractConfig)
    placement: Placement = STANDARD
    max_failures: int = 3
    timeout_s: float = 1800

    @property
    def batch_size(self) -> int:
        """Number of images per call of a teacher."""
        return self.extract.images_per_call(on_gpu=self.placement.teachers.gpu > 0)

    def downstream_resources(self, num_teachers: int, num_actors: int = 1) -> Resources:
        """Return the resources of each actor that processes the teachers' outputs, such as a reducer.

        They are those of a teacher's actor, without a GPU if the teachers use all GPUs.

        Args:
            num_teachers: The number of teachers.
            num_actors: The number of actors that process their outputs.
        """
        share = self.placement.teachers
        count = num_teachers * self.extract.actors_per_teacher + num_actors
        # The texts of a demand are only for error messages, which are not shown here.
        fit = shortage("", [Demand("", count, share, "")], current_hosts()) is None
        return share if fit else share.model_copy(update={"gpu": 0.0})

    def evaluators(self, num_teachers: int) -> tuple[int, Resources]:
        """Choose the number of actors that evaluate the teachers' outputs, and the resources of each.

        There are as many as each teacher has actors, because a student costs about as much as a teacher: with
        fewer, the teachers would wait for them. There are fewer, but at least one, if the living nodes have
        no room for so many beside the teachers and one decoding task. They use GPUs if the teachers leave
        some free: a few evaluators on GPUs are preferred to more on CPUs.

        Args:
            num_teachers: Number of teachers; 0 if students are evaluated without teachers.

        Returns:
            The number of actors, and the resources of each.
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
        return 1, without_gpu  # an autoscaling cluster adds a node for it


def pools_of(config: Config | TeachConfig, placement: Placement) -> Pools:
    """Collect the settings of the passes of a run.

    Args:
        config: The config of the run.
        placement: The resources of each process, as chosen for the cluster of the run.
    """
    return Pools(config.extract, placement, config.ray.max_failures, config.ray.timeout_s)


def remote_options(share: Resources) -> dict[str, Any]:
    """Return the arguments of Ray and Ray Data that give a process its share of the cluster.

    Only arguments that Ray Data names itself: others are its `ray_remote_args`, which Ray removes in 2.64.
    """
    options: dict[str, Any] = {"num_cpus": share.cpu, "num_gpus": share.gpu}
    options |= {"resources": dict(share.resources)} if share.resources else {}
    return options | ({"label_selector": dict(share.label)} if share.label else {})
