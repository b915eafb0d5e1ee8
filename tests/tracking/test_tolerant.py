"""Test that a run outlives its tracker: no error, calls are repeated, and what is missing is said."""

import errno
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ka_ray.config import TrackingConfig
from ka_ray.tracking import TRACKERS, NullTracker, open_tracker
from ka_ray.tracking.tolerant import RETRY_S, TolerantTracker


class FlakyTracker(NullTracker):
    """Records its calls; raises while `broken` says so of a call's name.

    Attributes:
        stored: Name and first argument of each call that worked, in order.
        tries: Number of calls, also of those that failed.
    """

    tracking_uri = "sqlite:///x"
    run_id = "id"

    def __init__(self, broken: Callable[[str], bool] = lambda name: False) -> None:
        self.broken, self.stored, self.tries = broken, list[tuple[str, Any]](), 0
        for name in ("log_params", "log_metrics", "log_warnings", "log_artifact", "log_student", "finish"):
            setattr(self, name, partial(self._store, name))

    def _store(self, name: str, *arguments: Any, **named: Any) -> None:
        self.tries += 1
        if self.broken(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        self.stored.append((name, [*arguments, *named.values()][0]))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def fail_after(calls: int) -> Callable[[str], bool]:
    """Return a function that is true from a number of calls on."""
    left = iter(range(calls))
    return lambda name: next(left, None) is None


def use_everything(tracker: Any) -> None:
    tracker.log_params({"seed": 0})
    tracker.log_metrics({"joint/loss": 1.0}, 1)
    tracker.log_metrics({"joint/loss": 0.5}, 2)
    tracker.log_warnings(["w"])
    tracker.log_artifact(Path("out/report.md"))
    tracker.log_student("student")
    tracker.finish(False)


EVERYTHING = [
    ("log_params", {"seed": 0}),
    ("log_metrics", {"joint/loss": 1.0}),
    ("log_metrics", {"joint/loss": 0.5}),
    ("log_warnings", ["w"]),
    ("log_artifact", Path("out/report.md")),
    ("log_student", "student"),
    ("finish", False),
]


def test_calls_of_a_tracker_that_works_pass_in_order_and_nothing_is_said():
    inner, notes = FlakyTracker(), list[str]()
    use_everything(TolerantTracker(inner, notes.append))
    assert inner.stored == EVERYTHING
    assert notes == []


@pytest.mark.parametrize("calls", range(8))
def test_a_tracker_that_fails_after_some_calls_raises_nothing_and_what_is_missing_is_said(calls):
    inner, notes = FlakyTracker(fail_after(calls)), list[str]()
    use_everything(TolerantTracker(inner, notes.append, Clock()))
    assert inner.stored == EVERYTHING[:calls]
    if calls >= len(EVERYTHING):
        assert notes == []
        return
    first, last = notes
    assert "could not be stored; the run goes on: [Errno 28] No space left on device" in first
    names = [
        "parameters",
        "metrics of joint",
        "metrics of joint",
        "warnings",
        "report.md",
        "as a model",
        "its end",
    ]
    for name in names[calls:]:
        assert name in last
    assert ("metrics of joint (2 times)" in last) == (calls <= 1)
    assert "The output folder has the student and the report" in last


def test_after_a_short_failure_everything_is_stored_in_order():
    clock, broken = Clock(), set[str]()
    inner, notes = FlakyTracker(lambda name: bool(broken)), list[str]()
    tracker = TolerantTracker(inner, notes.append, clock)
    tracker.log_params({"seed": 0})
    broken.add("all")
    for step in range(5):
        tracker.log_metrics({"joint/loss": float(step)}, step)
        clock.now += 1
    broken.clear()
    tries = inner.tries
    tracker.log_metrics({"joint/loss": 5.0}, 5)  # too early for another try
    assert inner.tries == tries
    clock.now += RETRY_S
    tracker.log_metrics({"joint/loss": 6.0}, 6)
    tracker.finish(True)
    expected = [("log_metrics", {"joint/loss": float(step)}) for step in range(7)]
    assert inner.stored == [("log_params", {"seed": 0}), *expected, ("finish", True)]
    assert len(notes) == 1


def test_a_call_that_is_refused_for_good_does_not_hold_up_the_others():
    inner, notes = FlakyTracker(lambda name: name == "log_artifact"), list[str]()
    use_everything(TolerantTracker(inner, notes.append, Clock()))
    assert inner.stored == [call for call in EVERYTHING if call[0] != "log_artifact"]
    assert "lacks report.md of this run" in notes[-1]


def test_a_store_that_refuses_all_files_gets_everything_else_and_the_end_of_the_run():
    inner, notes = FlakyTracker(lambda name: name == "log_artifact"), list[str]()
    tracker = TolerantTracker(inner, notes.append, Clock())
    for name in ("report.json", "report.md", "figures"):
        tracker.log_artifact(Path(name))
    tracker.log_metrics({"evaluate/accuracy": 1.0})
    tracker.finish(False)
    assert inner.stored == [("log_metrics", {"evaluate/accuracy": 1.0}), ("finish", False)]
    assert "lacks report.json, report.md, figures of this run" in notes[-1]


def test_a_server_behind_a_proxy_is_not_asked_directly(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    inner = FlakyTracker()
    inner.tracking_uri = "http://mlflow.invalid:5000"
    use_everything(TolerantTracker(inner, lambda text: None))
    assert inner.stored == EVERYTHING


def test_a_slow_failure_is_tried_more_rarely():
    clock = Clock()

    def fail_slowly(name: str) -> bool:
        clock.now += 100
        return True

    inner = FlakyTracker(fail_slowly)
    tracker = TolerantTracker(inner, lambda text: None, clock)
    for _ in range(20):  # 1,200 s
        tracker.log_metrics({"joint/loss": 0.0})
        clock.now += 60
    assert inner.tries <= 4


def test_values_are_those_of_the_call_even_if_they_are_changed_before_they_are_stored():
    clock = Clock()
    inner = FlakyTracker(fail_after(0))
    tracker = TolerantTracker(inner, lambda text: None, clock)
    metrics = {"joint/loss": 1.0}
    tracker.log_metrics(metrics)
    metrics["joint/loss"] = 2.0
    inner.broken = lambda name: False
    tracker.finish(False)
    assert inner.stored[0] == ("log_metrics", {"joint/loss": 1.0})


def test_children_are_tolerant_too_and_one_that_cannot_be_opened_is_said():
    inner, notes = FlakyTracker(), list[str]()
    opened = FlakyTracker(fail_after(0))
    inner.child = lambda name, run_id: opened
    parent = TolerantTracker(inner, notes.append, Clock())
    child = parent.child("direct", None)
    assert child.run_id == "id"
    child.log_metrics({"joint/loss": 1.0})
    child.finish(False)
    assert "metrics of joint" in notes[-1]

    def refuse(name: str, run_id: str | None) -> None:
        raise ConnectionError("gone")

    inner.child = refuse
    child = parent.child("distill", None)
    assert child.run_id is None
    child.log_metrics({"joint/loss": 1.0})
    child.finish(False)
    assert notes[-1] == "tracking: the nested run 'distill' cannot be opened and is not tracked: gone"


def test_a_server_that_is_gone_is_noticed_without_its_client():
    """MLflow's client would repeat each request for minutes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    inner, notes = FlakyTracker(), list[str]()
    inner.tracking_uri = f"http://127.0.0.1:{port}"
    use_everything(TolerantTracker(inner, notes.append))
    assert (inner.tries, inner.stored) == (0, [])
    assert "Connection refused" in notes[0]
    assert f"http://127.0.0.1:{port} lacks parameters" in notes[-1]


@pytest.fixture
def flaky(monkeypatch) -> Iterator[FlakyTracker]:
    tracker = FlakyTracker(lambda name: True)
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *arguments: tracker)
    return tracker


def fail_in_a_run(folder: Path, notify: Callable[[str], None] | None, error: Exception) -> None:
    with open_tracker(TrackingConfig(), "run", folder, None, notify) as tracker:
        tracker.log_params({})
        raise error


def test_a_run_is_tracked_tolerantly_and_its_own_error_is_the_one_that_is_raised(flaky, tmp_path):
    notes: list[str] = []
    with pytest.raises(KeyError, match="of the run"):
        fail_in_a_run(tmp_path, notes.append, KeyError("of the run"))
    assert "lacks parameters, its end" in notes[-1]
    with pytest.raises(OSError, match="No space left"):
        fail_in_a_run(tmp_path, None, KeyError("of the run"))
