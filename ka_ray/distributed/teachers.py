"""Run the teachers on images in Ray Data, in one actor pool per teacher.

Shapes: n images of a batch, C channels of one teacher at a tap, K_t classes of a teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
from ray.data import ActorPoolStrategy, ExecutionResources
from torch import Tensor

from ka_ray.config import (
    DESCRIPTIVE,
    Resources,
    ScoresConfig,
    TeacherConfig,
)
from ka_ray.distributed.descriptive import DescriptiveActor
from ka_ray.distributed.device import actor_device, describe_actor
from ka_ray.distributed.images import Columns
from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.restarts import StartCount, actor_of
from ka_ray.features.resize import resize_features
from ka_ray.features.stack import EMBEDDING, SCORES, TARGETS, feature_column
from ka_ray.images.augment import score_views
from ka_ray.images.views import IMAGE
from ka_ray.teachers import load_teacher

MIN_BLOCKS_IN_STORE = 16
"""With ``extract.object_store_gib``, Ray Data's blocks are made so small that at least this many fit into the
limit. Each teacher waits for whole blocks, so with few large blocks teachers could not work side by side."""


@dataclass(frozen=True)
class ReadSpec:
    """Which features and scores are read from every teacher.

    Attributes:
        paths: Teacher -> tap -> module path; without taps, only scores are read.
        spaces: Tap -> height and width to which the features of all teachers are resized.
        scores: The config's ``scores`` section; it says over which views of an image scores are averaged, and
            what the descriptive network is.
        images: Teacher -> column with its images; the column ``image`` for teachers that are not named.
        last_layers: Teacher -> path of its last layer, whose input is read as the embedding; empty: not read.
            If the descriptive network is among them, it is run, too.
        float32: Taps, or names of other columns, that are passed on and stored as float32: half precision
            would lose what they say.
        stored_images: Columns of images that are stored besides ``image``, because the teachers of training
            workers or teachers in training need them.
    """

    paths: Mapping[str, Mapping[str, str]]
    spaces: Mapping[str, tuple[int, ...]]
    scores: ScoresConfig
    images: Mapping[str, str] = field(default_factory=dict)
    stored_images: tuple[str, ...] = ()
    last_layers: Mapping[str, str] = field(default_factory=dict)
    float32: frozenset[str] = frozenset()


class TeacherActor:
    """Holds one teacher and adds its features and scores to every batch.

    Args:
        config: The config of the teacher.
        share: The CPUs, GPUs and other resources of the actor.
        reading: Which features and scores are read.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass; it records where actors run
            and how often each was started.
    """

    def __init__(self, config: TeacherConfig, share: Resources, reading: ReadSpec, monitor: Any) -> None:
        self._device = actor_device(share)
        monitor.record_placement.remote(describe_actor(config.name, self._device))
        self._starts = StartCount(monitor, actor_of(f"teacher {config.name}"))
        if self._starts.exhausted:
            return  # loading the teacher again could run out of memory again; see StartCount for what follows
        self._teacher = load_teacher(config).to(self._device)
        self._paths, self._reading = reading.paths.get(config.name, {}), reading

    def __call__(self, batch: Columns) -> Columns:
        """Add ``tap@teacher [n, C, *space]`` for every tap, and ``scores@teacher [n, K_t]``.

        With ``last_layers``, also add ``embedding@teacher [n, D_t]``. Features and embeddings are in fp16, or
        in float32 if the reading says so.

        With ``scores.views``, also add ``targets@teacher [n, K_t]``: the scores averaged over several shifted
        or flipped views of each image.
        """
        self._starts.check()
        name = self._teacher.name
        images = torch.tensor(batch[self._reading.images.get(name, IMAGE)]).to(self._device)
        with self._teacher.read_embedding(self._reading.last_layers.get(name)) as read:
            features, scores = self._teacher.features(images, self._paths)
        if read is not None:
            batch[feature_column(EMBEDDING, name)] = self._rounded(EMBEDDING, read.embedding).cpu().numpy()
        for tap, feature in features.items():
            fitted = resize_features(feature, self._reading.spaces[tap])
            # Arrow stores rows in the order [C, *space]; the feature may be in channels-last memory format.
            contiguous = self._rounded(tap, fitted).contiguous()
            batch[feature_column(tap, name)] = contiguous.cpu().numpy()
        batch[feature_column(SCORES, name)] = scores.float().cpu().numpy()
        if self._reading.scores.views:
            # Shifts are in pixels of the student's images.
            scale = images.shape[-1] / batch[IMAGE].shape[-1]
            averaged = score_views(self._teacher.scores, images, self._reading.scores, scores, scale)
            batch[feature_column(TARGETS, name)] = averaged.float().cpu().numpy()
        return batch

    def _rounded(self, column: str, values: Tensor) -> Tensor:
        return values.float() if column in self._reading.float32 else values.half()


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
    for actor, arguments in _list_networks(teachers, share, reading, monitor):
        rows = rows.map_batches(
            actor,
            fn_constructor_args=arguments,
            batch_size=extract.batch_size,
            compute=ActorPoolStrategy(size=extract.actors_per_teacher),
            **remote_options(share),
        )
    return rows


def _list_networks(
    teachers: Sequence[TeacherConfig], share: Resources, reading: ReadSpec, monitor: Any
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yield the class of the actors of each network, and the arguments of its constructor."""
    for teacher in teachers:
        yield TeacherActor, (teacher, share, reading, monitor)
    if DESCRIPTIVE in reading.last_layers:
        path, column = reading.last_layers[DESCRIPTIVE], reading.images[DESCRIPTIVE]
        yield DescriptiveActor, (reading.scores.descriptive, share, path, column, monitor)
