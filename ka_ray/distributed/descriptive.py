"""Run the network that is nobody's teacher on images in Ray Data.

Shapes: n images of a batch, D channels of its embedding.
"""

from typing import Any

from ka_ray.config import DESCRIPTIVE, DescriptiveConfig, Resources
from ka_ray.distributed.device import actor_device, describe_actor
from ka_ray.distributed.images import Columns
from ka_ray.distributed.restarts import StartCount, actor_of
from ka_ray.distributed.work_clock import record_work
from ka_ray.features.stack import EMBEDDING, feature_column
from ka_ray.numerics.host_copies import to_device, to_numpy
from ka_ray.teachers.descriptive import load_descriptive


class DescriptiveActor:
    """Holds the network and adds its embedding to every batch.

    Args:
        config: The section of the network.
        share: The CPUs, GPUs and other resources of the actor.
        path: Where its embedding is read, as
            :meth:`ka_ray.teachers.descriptive.DescriptiveNetwork.find_embedding` returns it.
        column: The column with its images.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass; it records where actors run
            and how often each was started.
    """

    def __init__(
        self, config: DescriptiveConfig, share: Resources, path: str, column: str, monitor: Any
    ) -> None:
        self._device, self._path, self._column = actor_device(share), path, column
        monitor.record_placement.remote(describe_actor(DESCRIPTIVE, self._device))
        self._starts = StartCount(monitor, actor_of("the descriptive network"))
        if self._starts.exhausted:
            return  # loading it again could run out of memory again
        with record_work(monitor, f"load {DESCRIPTIVE}"):
            self._network = load_descriptive(config).to(self._device)
        self._monitor = monitor

    def __call__(self, batch: Columns) -> Columns:
        """Add ``embedding@descriptive [n, D]`` in float32; stacking rounds it."""
        self._starts.check()
        with record_work(self._monitor, f"run {DESCRIPTIVE}"):
            embedding = self._network.embed(to_device(batch[self._column], self._device), self._path)
            batch |= to_numpy({feature_column(EMBEDDING, DESCRIPTIVE): embedding.float()})
        return batch
