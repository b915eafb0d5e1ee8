"""Compare an export with its student: scores, predicted classes, and the time that one image takes.

Shapes: B images, C, H and W of the student's view of an image, K classes.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.formats.job import ExportJob, Predict
from ka_ray.formats.networks import first_line

BATCHES = (1, 3, 16)
"""Sizes of the first two batches and of all others; students are traced with two images."""

TIMED_SECONDS, TIMED_CALLS, WARM_UP_CALLS = 1.0, 50, 3
"""For how long at most, and how often at most, each network is timed; and the calls before."""


@dataclass(frozen=True)
class Deviation:
    """How far an export's scores are from its student's.

    Attributes:
        images: Number of images that were compared.
        max_difference: Largest difference of a score, relative to the largest score.
        agreement: Share of the images for which both predict the same class.
    """

    images: int
    max_difference: float
    agreement: float


def measure_deviation(job: ExportJob, predict: Predict, pixels: Tensor) -> Deviation:
    """Compare an export with its student, in batches of several sizes.

    Args:
        job: The student.
        predict: The loaded export.
        pixels: The student's view of images, `[B, C, H, W]`, uint8.

    Raises:
        InputError: The export fails on a batch, or gives scores of another shape.
    """
    difference, largest, equal, compared = 0.0, 0.0, 0, 0
    for batch in _split(pixels):
        with torch.inference_mode():
            expected = job.student(batch)
        found = _run(predict, job.to_input(batch))
        if found.shape != expected.shape:
            raise InputError(
                f"the export gives scores of shape {tuple(found.shape)} for {len(batch)} images, and the "
                f"student {tuple(expected.shape)}"
            )
        if not found.isfinite().all():
            raise InputError("the export gives scores that are NaN or infinite")
        difference = max(difference, float((found - expected).abs().max()))
        largest = max(largest, float(expected.abs().max()))
        equal += int((found.argmax(dim=1) == expected.argmax(dim=1)).sum())
        compared += len(batch)
    return Deviation(len(pixels), difference / max(largest, 1e-12), equal / compared)


def _split(pixels: Tensor) -> Iterator[Tensor]:
    """Yield batches of several sizes; of fewer images than the first two need, some are used again."""
    first, second, others = BATCHES
    pixels = pixels.repeat(max(1, -(-(first + second) // len(pixels))), 1, 1, 1)
    yield pixels[:first]
    yield pixels[first : first + second]
    if len(pixels) > first + second:
        yield from pixels[first + second :].split(others)


def _run(predict: Predict, inputs: Tensor) -> Tensor:
    try:
        with torch.inference_mode():
            return predict(inputs)
    except Exception as error:  # each library raises types of its own
        raise InputError(
            f"the export fails on a batch of {len(inputs)} images: {first_line(error)}"
        ) from None


def measure_latency(job: ExportJob, predict: Predict, pixels: Tensor) -> tuple[float, float]:
    """Time student and export in turns, on one image.

    Args:
        job: The student; as a network with the export's input.
        predict: The loaded export.
        pixels: The student's view of at least one image.

    Returns:
        Median milliseconds of the student and of the export.
    """
    inputs = job.to_input(pixels[:1])
    networks: tuple[Predict, Predict] = (job.network, predict)
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        for _ in range(WARM_UP_CALLS):
            for network in networks:
                network(inputs)
        while len(seconds[0]) < TIMED_CALLS and sum(map(sum, seconds)) < 2 * TIMED_SECONDS:
            for network, times in zip(networks, seconds, strict=True):
                began = time.perf_counter()
                network(inputs)
                times.append(time.perf_counter() - began)
    student, export = (1000 * statistics.median(times) for times in seconds)
    return student, export
