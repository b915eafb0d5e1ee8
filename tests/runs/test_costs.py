"""Test what the report says of the time of stages."""

import pytest

from ka_ray.metrics import Counts
from ka_ray.reports.accuracy import measure_accuracy
from ka_ray.reports.summaries import Confusion, EvaluationSummary, ExtractionSummary
from ka_ray.runs.costs import compute_speeds
from ka_ray.sparse_counts import SparseCounts
from ka_ray.stages.summaries import StageSummary
from ka_ray.training.progress import Progress

PASS = {"unreadable": [], "placements": []}


def make_extraction(**changes):
    stored = {"bytes": 1, "passes": 1, "resumed": 0, "duplicate_rows": 0, "damaged": [], "shards": []}
    return ExtractionSummary.model_validate(PASS | stored | {"images": 100, "seconds": 5.0} | changes)


@pytest.fixture
def evaluated():
    return EvaluationSummary(
        **PASS,
        images=40,
        seconds=8.0,
        work={"run students and count": 3.0},
        accuracy=measure_accuracy(Counts.zeros(2, 0), []),
        confusion=Confusion.of(SparseCounts.zeros(2, 2)),
        curve=[],
    )


def make_stage(seconds, *records):
    history = [Progress("joint", 1, 1, 1, 1, *record) for record in records]
    return StageSummary(history=history, seconds=seconds)


def test_passes_add_up_their_work(evaluated):
    parts = [
        make_extraction(work={"decode images": 1.0, "run a": 2.0}),
        make_extraction(resumed=60, seconds=3.0, work={"decode images": 0.5}),
    ]
    speeds = compute_speeds({}, parts, evaluated)
    assert speeds["extract"].work == {"decode images": 1.5, "run a": 2.0}
    assert (speeds["extract"].seconds, speeds["extract"].images_per_s) == (8.0, 140 / 8)
    assert speeds["evaluate"].work == {"run students and count": 3.0}
    assert speeds["evaluate"].images_per_s == 5.0


def test_of_training_the_waiting_is_told_apart(evaluated):
    stages = {
        "start": make_stage(3.0),
        "joint": make_stage(12.0, (100, 4.0, {}, 0.5), (200, 10.0, {}, 1.5)),
    }
    speeds = compute_speeds(stages, [make_extraction()], evaluated)
    assert speeds["joint"].work == {"wait for batches": 1.5, "compute": 8.5}
    assert (speeds["joint"].seconds, speeds["joint"].images_per_s) == (12.0, 200 / 12)
    assert (speeds["start"].seconds, speeds["start"].work) == (3.0, {})


def test_a_resumed_stage_counts_the_seconds_of_all_images_that_it_counts(evaluated):
    stages = {"joint": make_stage(4.0, (200, 10.0, {}, 1.0))}  # the last attempt took 4 s
    speed = compute_speeds(stages, [make_extraction()], evaluated)["joint"]
    assert (speed.seconds, speed.images_per_s) == (10.0, 20.0)
