"""Check on a few images that a teacher works, before hours are spent on it.

Shapes: n images, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.teachers.activations import recognise_activation
from ka_ray.teachers.outputs import find_scores
from ka_ray.teachers.teacher import Teacher

SAME_CLASS_SHARE = 0.95
"""A teacher that predicts one class for a larger share of the images is reported."""

SMALLEST_SAMPLE = 8
"""With fewer images, one class for all of them means nothing."""

CONSTANT = 1e-6
"""Scores that vary less between images, relative to the largest score, are a constant."""

REPEATABLE = 1e-3
"""Two passes over the same images may differ by this share of the scores' standard deviation."""


FEW = 4
"""Number of images that are passed through the teacher alone, to compare their scores."""


SURE = 0.9
"""A teacher is sure of an image if its most probable class has more than this probability."""

DEAD_SHARE = 0.5
"""A tap is reported if a larger share of its channels is the same for all images and positions."""


def check_teacher(
    teacher: Teacher, images: Tensor, labels: Sequence[str], paths: Mapping[str, str] | None = None
) -> list[str]:
    """Check a teacher's answers and features on a sample of the run's images.

    Args:
        teacher: The teacher with its weights.
        images: The teacher's view of some images, ``[n, C, H, W]`` uint8.
        labels: The class of each image; empty text if it has none.
        paths: Tap -> module path of the features that are checked; None: none.

    Returns:
        What the user should know: one line per finding; empty if nothing is odd.

    Raises:
        InputError: Scores or features are not finite, or the same for all images; or the scores are
            probabilities, and the config does not say so.
    """
    with torch.inference_mode():
        output = teacher.network(teacher.preprocess(images))
        outputs = find_scores(output, len(teacher.classes), teacher.output)
    if not outputs.isfinite().all():
        raise InputError(f"teacher {teacher.name}: its scores are not finite; check its checkpoint and `std`")
    differ = bool((images != images[:1]).any())
    if differ and outputs.std(dim=0).max() <= CONSTANT * outputs.abs().max():
        raise InputError(
            f"teacher {teacher.name}: gives the same scores for all of {len(images)} images; check its "
            "checkpoint and its preprocessing"
        )
    scores = teacher.scores(images)
    features = teacher.features(images, paths)[0] if paths else {}
    notes = [_check_feature(teacher.name, tap, feature, differ) for tap, feature in features.items()]
    notes += [
        _find_activation(teacher, outputs),
        _one_class(teacher, scores),
        _accuracy(teacher, scores, labels),
        _unstable(teacher, images, scores),
        _other_normalisation(teacher),
    ]
    return [f"teacher {teacher.name}: {note}" for note in notes if note]


def describe_checkpoint(teacher: Teacher) -> str | None:
    """Return what was done to a teacher's checkpoint so that it fits, for the user; None if nothing was."""
    return f"teacher {teacher.name}: checkpoint: {teacher.note}" if teacher.note else None


def describe_answers(teacher: Teacher, images: Tensor, labels: Sequence[str]) -> str:
    """Return in a sentence how a teacher answers on a sample of the run's images.

    Args:
        teacher: The teacher with its weights.
        images: The teacher's view of some images, ``[n, C, H, W]`` uint8.
        labels: The class of each image; empty text if it has none.
    """
    probabilities, best = teacher.scores(images).softmax(dim=1).max(dim=1)
    counts = best.bincount(minlength=len(teacher.classes))
    known = [i for i, label in enumerate(labels) if label in teacher.classes]
    right = sum(teacher.classes[int(best[i])] == labels[i] for i in known)
    of_own_classes = f", right for {right} of {len(known)} of its own classes" if known else ""
    return (
        f"teacher {teacher.name}, tried on {len(images)} images: surer than {SURE:.0%} of "
        f"{int((probabilities > SURE).sum())}, most often {teacher.classes[int(counts.argmax())]!r} "
        f"({int(counts.max())}){of_own_classes}"
    )


def _check_feature(name: str, tap: str, feature: Tensor, images_differ: bool) -> str:
    """Return a note if many channels of a tap are constant; refuse a tap without any information."""
    if not feature.isfinite().all():
        raise InputError(f"taps.{tap}: features of teacher {name} are not finite; check its checkpoint")
    channels = feature.float().flatten(2) if feature.dim() > 2 else feature.float()[:, :, None]
    varies = channels.amax(dim=(0, 2)) - channels.amin(dim=(0, 2)) > CONSTANT * channels.abs().max()
    dead = int((~varies).sum())
    if images_differ and dead == len(varies):
        raise InputError(
            f"taps.{tap}: features of teacher {name} are the same for all of {len(feature)} images; choose "
            "another module"
        )
    if not images_differ or dead <= DEAD_SHARE * len(varies):
        return ""
    return f"{dead} of {len(varies)} channels at tap {tap} are the same for all of {len(feature)} images"


def _find_activation(teacher: Teacher, outputs: Tensor) -> str:
    """Return a note if the outputs look like a sigmoid's; refuse a softmax's, which are recognised surely."""
    found = recognise_activation(outputs)
    if found is None or len(outputs) == 1 or teacher.final_activation is not None:
        return ""
    advice = f"set final_activation: {found}, or none if these are its scores"
    if found == "sigmoid":  # small scores can lie in 0 ... 1 by chance
        return f"its outputs all lie in 0 ... 1, as if the network ended in a sigmoid; {advice}"
    raise InputError(
        f"teacher {teacher.name}: its outputs look as if the network ended in {found}. Teachers are compared "
        f"by their scores before it: {advice}"
    )


def _one_class(teacher: Teacher, scores: Tensor) -> str:
    counts = scores.argmax(dim=1).bincount(minlength=len(teacher.classes))
    share = float(counts.max() / len(scores))
    if len(scores) < SMALLEST_SAMPLE or share <= SAME_CLASS_SHARE:
        return ""
    name = teacher.classes[int(counts.argmax())]
    return (
        f"predicts {name!r} for {100 * share:.0f} % of {len(scores)} images; if that is not what the images "
        "show, check its checkpoint, its classes and its preprocessing"
    )


def _accuracy(teacher: Teacher, scores: Tensor, labels: Sequence[str]) -> str:
    known = [i for i, label in enumerate(labels) if label in teacher.classes]
    if len(known) < SMALLEST_SAMPLE:
        return ""
    best = scores.argmax(dim=1).tolist()
    right = sum(teacher.classes[best[i]] == labels[i] for i in known)
    # Guessing is right this often, with this standard deviation.
    chance = 1 / len(teacher.classes)
    by_chance, deviation = len(known) * chance, math.sqrt(len(known) * chance * (1 - chance))
    if right > by_chance + deviation:
        return ""
    return (
        f"is right for {right} of {len(known)} images of its own classes, hardly more than by chance; check "
        "its checkpoint, the order of its classes and its preprocessing"
    )


def _other_normalisation(teacher: Teacher) -> str:
    """Compare the mean and standard deviation with those that a network of timm carries with it."""
    carried = getattr(teacher.network, "pretrained_cfg", None) or {}
    for key, given in zip(("mean", "std"), teacher.preprocess.rgb_statistics, strict=True):
        known = carried.get(key)
        if known and len(known) == len(given) and not np.allclose(known, given, atol=1e-3):
            return (
                f"preprocessing.{key} is {[round(value, 4) for value in given]} of white, but timm's data "
                f"config of its network says {list(known)}: right if it was fine-tuned from timm's weights"
            )
    return ""


def _unstable(teacher: Teacher, images: Tensor, scores: Tensor) -> str:
    """Compare the scores with two passes over the first images alone."""
    alone, again = (teacher.scores(images[:FEW]) for _ in range(2))
    allowed = REPEATABLE * max(float(scores.std()), 1e-6)
    if float((alone - again).abs().max()) > allowed:
        return "gives other scores for the same images in every pass; dropout is active in its forward pass"
    if float((scores[:FEW] - alone).abs().max()) > allowed:
        return "an image's scores depend on the other images of the batch; a batch norm has no statistics"
    return ""
