"""What networks and stages cost: sizes of the student and its teachers, time of every stage."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ka_ray.config import Config
from ka_ray.images.views import NetworkViews, View
from ka_ray.reports.network_size import measure_size, measure_speed
from ka_ray.reports.networks import NetworkSize, NetworkSizes, add_up
from ka_ray.reports.sections import StageName, StageSpeed
from ka_ray.reports.summaries import EvaluationSummary, ExtractionSummary
from ka_ray.stages.summaries import StageSummary
from ka_ray.student import load_student
from ka_ray.teachers import load_teacher


def measure_sizes(config: Config, views: NetworkViews, folder: Path) -> NetworkSizes:
    """Measure the student and its teachers.

    Args:
        config: The config of the run, all of whose teachers have a checkpoint.
        views: The pixels that each network gets of an image.
        folder: The output folder, with the finished student.
    """
    # One after the other: all teachers need not fit into memory together.
    per_teacher = {
        teacher.name: _measure(
            teacher.network, teacher.preprocess, teacher.scores, views.teachers[teacher.name]
        )
        for teacher in map(load_teacher, config.teachers)
    }
    student = load_student(folder, trust=True)
    return NetworkSizes(
        student=_measure(student, nn.Identity(), student, views.student),
        teachers=add_up(list(per_teacher.values())),
        per_teacher=per_teacher,
        threads=torch.get_num_threads(),
    )


def _measure(
    network: nn.Module, preprocess: nn.Module, score: Callable[[Tensor], Tensor], view: View
) -> NetworkSize:
    """Measure a network.

    Args:
        network: What is counted.
        preprocess: Turns pixels into its input.
        score: Turns pixels into scores, which is timed.
        view: The pixels that it gets of an image.
    """
    pixels = torch.zeros(1, *view.shape, dtype=torch.uint8)
    size = measure_size(network, preprocess(pixels))
    return size.model_copy(update={"speed": measure_speed(score, pixels)})


def compute_speeds(
    stages: Mapping[StageName, StageSummary],
    extraction: Sequence[ExtractionSummary],
    evaluated: EvaluationSummary,
) -> dict[StageName, StageSpeed]:
    """Compute the time and the throughput of every stage that ran.

    Args:
        stages: Stage of training -> its summary.
        extraction: The summaries of the passes that stored features and scores.
        evaluated: The evaluation of the student.
    """
    measured: dict[StageName, tuple[int, float, Mapping[str, float]]] = {
        stage: (summary.images_seen, _all_seconds(summary), _training_work(summary))
        for stage, summary in stages.items()
    }
    # The seconds do not include images that an earlier attempt of this run had already stored.
    extracted, work = sum(part.images - part.resumed for part in extraction), Counter[str]()
    for part in extraction:
        work.update(part.work)
    measured["extract"] = (extracted, sum(part.seconds for part in extraction), work)
    measured["evaluate"] = (evaluated.images, evaluated.seconds, evaluated.work)
    return {
        stage: StageSpeed(seconds=seconds, images_per_s=images / seconds, work=dict(work))
        for stage, (images, seconds, work) in measured.items()
    }


def _all_seconds(summary: StageSummary) -> float:
    """Return the seconds of a stage; of one that was resumed, at least those of all its training."""
    # The images that it has seen are those of all attempts, too, but its own seconds those of the last one.
    return max([summary.seconds, *(record.seconds for record in summary.history[-1:])])


def _training_work(summary: StageSummary) -> dict[str, float]:
    """Return how long training waited for batches, and how long it did not; nothing without batches."""
    last = summary.history[-1] if summary.history else None
    if last is None or not last.waited:
        return {}
    return {"wait for batches": last.waited, "compute": last.seconds - last.waited}
