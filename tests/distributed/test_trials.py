"""Trials with Ray Tune and invented results: which are reported, stopped early, or failed."""

from typing import Any

import pytest

from ka_ray.config import Resources, TuneConfig
from ka_ray.distributed.trials import Search, search

pytestmark = pytest.mark.ray


def test_every_finished_trial_is_reported_once_and_a_failed_one_is_named(cluster, tmp_path):
    def run_point(point: Any, device: Any, report: Any, shared: Any) -> None:
        if point["width.conv1"] == 3:
            raise ValueError("no student is that narrow")
        report({"agreement": point["width.conv1"] / shared["widest"], "epochs": 0, "device": str(device)})

    finished = []
    config, share = TuneConfig(max_concurrent=2), Resources(cpu=0.5)
    points = [{"width.conv1": width} for width in (2, 3, 8, 5)]
    failed = search(
        Search(config, share, 1, points, {}, len(points), epochs=0, seed=0, folder=tmp_path),
        run_point,
        {"widest": 10},
        lambda point, result: finished.append((point["width.conv1"], result["agreement"], result["device"])),
    )
    assert sorted(finished) == [(2, 0.2, "cpu"), (5, 0.5, "cpu"), (8, 0.8, "cpu")]
    assert failed == {"{'width.conv1': 3}": "ValueError: no student is that narrow"}


def test_trials_worse_than_an_earlier_one_are_stopped_early(cluster, tmp_path):
    def run_point(point: Any, device: Any, report: Any, shared: Any) -> None:
        for epoch in range(1, 5):
            report({"agreement": point["width.conv1"] * epoch, "epochs": epoch})

    finished = {}
    config, share = TuneConfig(max_concurrent=1), Resources()  # one after another; the best one is the first
    points = [{"width.conv1": width} for width in (9, 1, 2, 3, 4)]
    failed = search(
        Search(config, share, 1, points, {}, len(points), epochs=4, seed=0, folder=tmp_path),
        run_point,
        None,
        lambda point, result: finished.update({point["width.conv1"]: result["epochs"]}),
    )
    assert failed == {}
    assert finished == {9: 4, 1: 1, 2: 1, 3: 1, 4: 1}
