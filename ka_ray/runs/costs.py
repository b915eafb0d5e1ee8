"""What networks and stages cost: sizes of the student and its teachers, time of every stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ka_ray.config import Config
from ka_ray.images.views import NetworkViews
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.sections import NetworkSize, NetworkSizes, StageName, StageSpeed
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
    per_teacher = {
        teacher.name: measure_size(
            teacher.network, teacher.preprocess(torch.zeros(1, *views.teachers[teacher.name].shape))
        )
        for teacher in map(load_teacher, config.teachers)
    }
    total = NetworkSize(
        parameters=sum(size.parameters for size in per_teacher.values()),
        macs=sum(size.macs for size in per_teacher.values()),
        bytes=sum(size.bytes for size in per_teacher.values()),
    )
    return NetworkSizes(
        student=measure_size(load_student(folder, trust=True), torch.zeros(1, *views.student.shape)),
        teachers=total,
        per_teacher=per_teacher,
    )


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
    images_and_seconds: dict[StageName, tuple[int, float]] = {
        stage: (summary.images_seen, summary.seconds) for stage, summary in stages.items()
    }
    # The seconds do not include images that an earlier attempt of this run had already stored.
    extracted = sum(part.images - part.resumed for part in extraction)
    images_and_seconds["extract"] = (extracted, sum(part.seconds for part in extraction))
    images_and_seconds["evaluate"] = (evaluated.images, evaluated.seconds)
    return {
        stage: StageSpeed(seconds=seconds, images_per_s=images / seconds)
        for stage, (images, seconds) in images_and_seconds.items()
    }
