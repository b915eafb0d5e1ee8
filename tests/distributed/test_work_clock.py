"""Test how the processes of a pass measure their work, with a clock that the test moves."""

import time

import pytest

from ka_ray.distributed.work_clock import record_items, record_work


class Monitor:
    """Takes reports like the actor of a pass."""

    def __init__(self):
        self.reports = []
        self.record_work = self

    def remote(self, kind, seconds):
        self.reports.append((kind, seconds))


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_items_count_only_the_time_in_which_they_are_made(clock):
    def decode():
        for seconds in (1.0, 2.0):
            clock[0] += seconds
            yield seconds
        clock[0] += 0.5  # what follows the last item

    monitor, items = Monitor(), []
    for item in record_items(decode(), monitor, "decode images"):
        items.append(item)
        clock[0] += 10.0  # the next process works
        assert monitor.reports == []
    assert items == [1.0, 2.0]
    assert monitor.reports == [("decode images", 3.5)]


def test_a_block_is_recorded_once_it_has_ended(clock):
    monitor = Monitor()
    with record_work(monitor, "run low"):
        clock[0] += 4.0
        assert monitor.reports == []
    assert monitor.reports == [("run low", 4.0)]
