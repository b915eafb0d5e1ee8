"""Run the teachers on images in Ray Data, in one actor pool per teacher.

Shapes: n images of a batch, C channels of one teacher at a tap, K_t classes of a teacher.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, ExecutionResources

from ka_ray.config import DESCRIPTIVE, Resources, TeacherConfig
from ka_ray.distributed.descriptive import DescriptiveActor
from ka_ray.distributed.device import actor_device, describe_actor
from ka_ray.distributed.images import Columns
from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.restarts import StartCount, actor_of
from ka_ray.distributed.work_clock import record_work
from ka_ray.numerics.mixed_precision import Precision
from ka_ray.teachers import load_teacher
from ka_ray.teachers.reading import ReadSpec, read_teacher

MIN_BLOCKS_IN_STORE = 16
"""With ``extract.object_store_gib``, Ray Data's blocks are made so small that at least this many fit into the
limit. Each teacher waits for whole blocks, so with few large blocks teachers could not work side by side."""


class TeacherActor:
    """Holds one teacher and adds its features and scores to every batch.

    Args:
        config: The config of the teacher.
        share: The CPUs, GPUs and other resources of the actor.
        reading: Which features and scores are read.
        amp: Number format of most layers, on a GPU.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass; it records where actors run
            and how often each was started.
    """

    def __init__(
        self, config: TeacherConfig, share: Resources, reading: ReadSpec, amp: Precision, monitor: Any
    ) -> None:
        self._device = actor_device(share)
        monitor.record_placement.remote(describe_actor(config.name, self._device))
        self._starts = StartCount(monitor, actor_of(f"teacher {config.name}"))
        if self._starts.exhausted:
            return  # loading the teacher again could run out of memory again; see StartCount for what follows
        with record_work(monitor, f"load {config.name}"):
            self._teacher, self._reading, self._amp = load_teacher(config).to(self._device), reading, amp
        self._monitor = monitor

    def __call__(self, batch: Columns) -> Columns:
        """Add what :func:`ka_ray.teachers.reading.read_teacher` reads to a batch."""
        self._starts.check()
        with record_work(self._monitor, f"run {self._teacher.name}"):
            return batch | read_teacher(self._teacher, batch, self._reading, self._amp)


def list_networks(teachers: Sequence[TeacherConfig], reading: ReadSpec) -> list[str]:
    """Return the names of the networks that images pass through: teachers, and the descriptive network.

    Args:
        teachers: The teachers in stacking order.
        reading: Which features and scores are read.
    """
    return [*(teacher.name for teacher in teachers), *({DESCRIPTIVE} & reading.last_layers.keys())]


def run_teachers(
    rows: ray.data.Dataset,
    teachers: Sequence[TeacherConfig],
    pools: Pools,
    reading: ReadSpec,
    monitor: Any,
) -> ray.data.Dataset:
    """Add the features and scores of all teachers to a dataset, with one actor pool per teacher.

    The pools are chained: a batch goes through all of them, see :class:`TeacherActor`. If the descriptive
    network is read, it has a pool like a teacher's, behind theirs.

    An actor that dies is started again with its batch, but only a limited number of times: a teacher that
    always runs out of memory must end the run.

    Args:
        rows: The dataset of images.
        teachers: The teachers in stacking order.
        pools: Settings of the processes of the pass: batch size, number and resources.
        reading: Which features and scores are read.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
    """
    extract, share = pools.extract, pools.placement.teachers
    if extract.object_store_gib is not None:
        limit, context = round(extract.object_store_gib * 1024**3), rows.context
        limits = ExecutionResources.for_limits(object_store_memory=limit)
        context.execution_options.resource_limits = limits
        context.target_max_block_size = min(
            context.target_max_block_size or limit, limit // MIN_BLOCKS_IN_STORE
        )
    for actor, arguments in _list_networks(teachers, share, reading, extract.amp, monitor):
        rows = rows.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=pools.batch_size,
            compute=ActorPoolStrategy(size=extract.actors_per_teacher),
            **remote_options(share),
        )
    return rows


def _list_networks(
    teachers: Sequence[TeacherConfig], share: Resources, reading: ReadSpec, amp: Precision, monitor: Any
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the class of the actors of each network, and the arguments of its constructor."""
    for teacher in teachers:
        yield TeacherActor, (teacher, share, reading, amp, monitor)
    if DESCRIPTIVE in reading.last_layers:
        path, column = reading.last_layers[DESCRIPTIVE], reading.images[DESCRIPTIVE]
        yield DescriptiveActor, (reading.scores.descriptive, share, path, column, monitor)
