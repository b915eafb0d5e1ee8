"""Notice teachers that get other pixels than they were trained on, by what their batch norms remember."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ka_ray.config import Preprocessing
from ka_ray.config.preprocessing import IMAGENET
from ka_ray.images.split import ImageSet, read_sample
from ka_ray.images.views import view_of
from ka_ray.teachers import Teacher
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.trained_pixels import measure_misfit
from ka_ray.verbosity import verbosity

FITS = 0.03
"""Nats: a teacher whose images are as near as this is not asked about others, which takes seconds."""

MUCH_NEARER = 2.0
"""Other pixels are named if the images are nearer to those of the training by this factor."""

NEARER = 1.1
"""A size, or a normalisation, counts as better if it brings them nearer by this factor."""

SIDES = (32, 64, 96, 128, 160, 192, 224, 288, 384)
"""Pixels of the crops that are tried."""

CHEAP_SIDE = 224
"""Larger crops are tried only if they are not much larger than that of the config: they take long."""

MAX_TRIES = 4
"""How often sizes and normalisations are tried in turns."""

NORMALISATIONS: Sequence[Mapping[str, Any]] = (
    {**IMAGENET, "rescale": 1 / 255},
    {"mean": (0.5,) * 3, "std": (0.5,) * 3, "rescale": 1 / 255},
    {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rescale": 1 / 255},
    {"mean": (0.0,) * 3, "std": (1.0,) * 3, "rescale": 1.0},
)
"""The usual ones that are tried."""

KEYS = ("size", "crop", "mean", "std", "rescale")
"""Keys of a preprocessing that are tried with other values."""


@dataclass(frozen=True)
class Fit:
    """How well some pixels fit what a network was trained on.

    Attributes:
        preprocessing: What leads to these pixels; it leaves nothing open.
        misfit: See :func:`ka_ray.teachers.trained_pixels.measure_misfit`.
    """

    preprocessing: Preprocessing
    misfit: float


def find_other_pixels(
    teacher: Teacher, preprocessing: Preprocessing, images: ImageSet, pixels: torch.Tensor
) -> Iterator[str]:
    """Yield what a teacher probably should see instead of what it gets; nothing if it is as in its training.

    Args:
        teacher: The teacher with its weights.
        preprocessing: What its section says.
        images: The training images of the run.
        pixels: What the teacher gets of some of them, ``[n, C, H, W]`` uint8.
    """
    misfit = measure_misfit(teacher.network, teacher.preprocess, pixels)
    if misfit is None:
        return
    given = Fit(preprocessing.resolve(images.config.size, images.config.resize), misfit)
    best = find_better(teacher, given, images)
    if best is not None:
        yield (
            f"teacher {teacher.name}: probably gets other pixels than it was trained on. With "
            f"{describe_changes(given, best)}, the images are {misfit / best.misfit:.1f} times as near to "
            f"its training, as its batch norms remember it, as with {describe_changes(best, given)}. Unless "
            f"it was trained on much sharper or blurrier images, set teachers.{teacher.name}.preprocessing"
        )


def find_better(teacher: Teacher, given: Fit, images: ImageSet) -> Fit | None:
    """Find pixels that fit a teacher's training much better than what it gets.

    Args:
        teacher: The teacher with its weights.
        given: What it gets now.
        images: The images to choose from.

    Returns:
        The best that was found; None if what it gets fits, or nothing fits much better.
    """
    if given.misfit <= FITS or given.preprocessing.channels != 3:
        return None
    if not verbosity().quiet:
        print(f"teacher {teacher.name}: trying other sizes and normalisations", file=sys.stderr, flush=True)
    best = _find_nearest(teacher, given, images)
    return best if best.misfit * MUCH_NEARER <= given.misfit else None


def _find_nearest(teacher: Teacher, given: Fit, images: ImageSet) -> Fit:
    """Try sizes and normalisations in turns, until neither brings a few images nearer to the training."""
    best, in_vain = given, 0
    for number in range(MAX_TRIES):
        tried = _other_sizes if number % 2 == 0 else _other_normalisations
        found = min(tried(teacher, best.preprocessing, images), key=lambda fit: fit.misfit, default=best)
        is_better = found.misfit * NEARER <= best.misfit
        best, in_vain = (found, 0) if is_better else (best, in_vain + 1)
        if in_vain == 2:
            break
    return best


def _other_normalisations(teacher: Teacher, given: Preprocessing, images: ImageSet) -> Iterator[Fit]:
    """Yield other usual means and standard deviations of the same pixels."""
    yield from _measure(teacher, [given.model_copy(update=dict(keys)) for keys in NORMALISATIONS], images)


def _other_sizes(teacher: Teacher, given: Preprocessing, images: ImageSet) -> Iterator[Fit]:
    """Yield other sizes of the same crops."""
    assert given.size is not None
    assert given.crop is not None
    sides = [side for side in SIDES if given.crop / 4 <= side <= max(1.3 * given.crop, CHEAP_SIDE)]
    sizes = [
        given.model_copy(update={"size": round(given.size * side / given.crop), "crop": side})
        for side in sides
        if side != given.crop and given.resize != "none"
    ]
    yield from _measure(teacher, sizes, images)


def _measure(teacher: Teacher, tried: Sequence[Preprocessing], images: ImageSet) -> Iterator[Fit]:
    """Yield how far each preprocessing is from the training; none that the network does not accept."""
    views = {f"{number}": view_of(one) for number, one in enumerate(tried)}
    sample = read_sample(images.with_views(views))
    for one, column in zip(tried, views, strict=True):
        if sample is None:
            return
        try:
            misfit = measure_misfit(teacher.network, Preprocess(one), torch.from_numpy(sample[column]))
        except (RuntimeError, AssertionError, ValueError):  # a network of one size
            continue
        if misfit is not None:
            yield Fit(one, misfit)


def describe_changes(before: Fit, after: Fit) -> str:
    """Return the keys of ``after`` that differ from ``before``, as a config says them."""
    old, new = before.preprocessing, after.preprocessing
    changed = {key for key in KEYS if getattr(old, key) != getattr(new, key)}
    if changed & {"size", "crop"}:  # one without the other could mean something else
        changed |= {"size", "crop"}
    return "{" + ", ".join(f"{key}: {_format(getattr(new, key))}" for key in KEYS if key in changed) + "}"


def _format(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else f"{value:.4g}"
