"""Test the record of where the time of a command goes."""

import time
from contextlib import contextmanager

import pytest

from ka_ray.runs.timeline import Timeline


def test_steps_follow_each_other_and_last_as_long_as_their_blocks(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    timeline = Timeline()
    now[0] = 102.0
    with timeline.step("starting Ray"):
        now[0] = 105.5
    now[0] = 106.0
    with timeline.step("evaluating"):
        now[0] = 107.0
    steps = [(step.step, step.began, step.seconds) for step in timeline.steps]
    assert steps == [("starting Ray", 2.0, 3.5), ("evaluating", 6.0, 1.0)]


def test_of_a_context_only_entering_it_is_a_step(monkeypatch):
    now, left = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    @contextmanager
    def connect():
        now[0] += 6.0
        yield "cluster"
        left.append(now[0])

    timeline = Timeline()
    with timeline.entering("starting Ray", connect()) as cluster:
        assert cluster == "cluster"
        now[0] += 10.0
        assert left == []
    assert left == [16.0]
    assert [(step.step, step.seconds) for step in timeline.steps] == [("starting Ray", 6.0)]


def test_a_step_that_fails_is_recorded_and_its_error_goes_on():
    timeline = Timeline()
    with pytest.raises(ValueError, match="disk"), timeline.step("extracting images"):
        raise ValueError("disk")
    assert [step.step for step in timeline.steps] == ["extracting images"]
