"""Images of a synthetic world, in which the features tell the owner better than the teachers' scores do."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.gates.inputs import GateSample

World = tuple[GateSample, Tensor, LabelSets]
"""A sample, the true owners, and the teachers' classes."""


def draw_world(
    n: int, teachers: int = 2, *, separation: float = 2.0, loudness: float = 1.0, seed: int = 0
) -> World:
    """Draw images of teachers with two classes each.

    Args:
        n: Number of images.
        teachers: Number of teachers.
        separation: Distance of a teacher's own images from others in its features, in standard deviations.
        loudness: By how much a teacher's scores of its own images exceed those of others.
        seed: Seed of the images.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [f"t{k}" for k in range(teachers)]
    label_sets = LabelSets({name: (f"{name}_a", f"{name}_b") for name in names})
    owners = torch.arange(n) % teachers
    features, scores = {}, []
    for k, name in enumerate(names):
        own = (owners == k).float()
        rows = torch.randn(n, 5, generator=generator)
        rows[:, 0] += separation * own
        features[name] = rows
        scores.append(torch.randn(n, 2, generator=generator) + loudness * own[:, None])
    return GateSample(features, torch.cat(scores, dim=1)), owners, label_sets


@pytest.fixture
def world() -> Callable[..., World]:
    """Return the function that draws a world."""
    return draw_world
