"""Decide, before a pass over the images, which features float16 would spoil; these are stored as float32."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ka_ray.config import DESCRIPTIVE
from ka_ray.features.precision import needs_float32
from ka_ray.features.resize import resize_features
from ka_ray.features.stack import EMBEDDING, SCORES
from ka_ray.images.split import read_sample
from ka_ray.images.views import IMAGE
from ka_ray.runs.context import Run
from ka_ray.student.plan import FLOAT16_BYTES, FLOAT32_BYTES, Plan
from ka_ray.teachers import load_teacher
from ka_ray.teachers.descriptive import load_descriptive
from ka_ray.teachers.reading import ReadSpec


def choose_precision(run: Run, reading: ReadSpec) -> ReadSpec:
    """Try the networks on a few training images, and choose what is stored as float32.

    Args:
        run: The run, all of whose teachers have checkpoints.
        reading: What is read of the networks.

    Returns:
        The same with `float32`; the user is told if that is anything.
    """
    sample = read_sample(run.training_images)
    if sample is None:  # no image is readable, which the pass will say
        return reading
    found = dict[str, set[str]]()
    for network, column, values in _read_networks(run, reading, sample):
        if needs_float32(values):
            found.setdefault(column, set()).add(network)
    for column, networks in found.items():
        run.notify(
            f"{column} of {', '.join(sorted(networks))}: stored as float32, which takes twice the room: "
            "float16 would lose more than a thousandth of a channel's variance (large mean, small deviation)"
        )
    return replace(reading, float32=frozenset(found))


def _read_networks(
    run: Run, reading: ReadSpec, sample: Mapping[str, object]
) -> Iterator[tuple[str, str, Tensor]]:
    """Yield network, column and values of what the pass will store of the sample, one network at a time."""
    for section in run.config.teachers:
        name, teacher = section.name, load_teacher(section)
        images = torch.as_tensor(sample[reading.images.get(name, IMAGE)])
        with torch.inference_mode(), teacher.read_embedding(reading.last_layers.get(name)) as read:
            features, scores = teacher.features(images, reading.paths.get(name, {}))
        for tap, feature in features.items():
            yield name, tap, resize_features(feature, reading.spaces[tap])
        yield name, SCORES, scores
        if read is not None:
            yield name, EMBEDDING, read.embedding
    descriptive = run.config.scores.descriptive
    if descriptive is not None and DESCRIPTIVE in reading.last_layers:
        images = torch.as_tensor(sample[reading.images[DESCRIPTIVE]])
        network = load_descriptive(descriptive)
        yield DESCRIPTIVE, EMBEDDING, network.embed(images, reading.last_layers[DESCRIPTIVE])


def count_float32_bytes(plan: Plan, reading: ReadSpec, embedding_channels: int = 0) -> int:
    """Return how many bytes of one image float32 takes on disk in addition to those of float16.

    Args:
        plan: The plan of the run, which counts all as float16.
        reading: What is read.
        embedding_channels: Channels of all embeddings that are read.
    """
    sizes = {tap: math.prod(shape) for tap, shape in plan.shapes.items() if tap in reading.spaces}
    sizes |= {SCORES: plan.label_sets.num_scores, EMBEDDING: embedding_channels}
    return (FLOAT32_BYTES - FLOAT16_BYTES) * sum(sizes.get(column, 0) for column in reading.float32)
