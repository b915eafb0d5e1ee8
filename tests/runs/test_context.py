"""Test what a run prints when it starts."""

from contextlib import contextmanager

import pytest

from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.runs import context
from ka_ray.runs.context import open_context
from ka_ray.tracking import NullTracker


@pytest.mark.parametrize("link", ["http://host:5000/#/experiments/1/runs/abc", None])
def test_a_run_prints_the_mlflow_link_before_all_other_messages(
    load_config, tmp_path, monkeypatch, capsys, link
):
    @contextmanager
    def connect(config):
        yield Cluster((Host("here", {"CPU": 8.0}),))

    @contextmanager
    def open_tracker(*arguments):
        tracker = NullTracker()
        tracker.link = link
        yield tracker

    monkeypatch.setattr(context, "connect", connect)
    monkeypatch.setattr(context, "open_tracker", open_tracker)
    with open_context(load_config(), tmp_path, "run") as run:
        run.notify("a later message")
    expected = ["a later message"] if link is None else [f"mlflow: {link}", "a later message"]
    assert capsys.readouterr().out.splitlines() == expected
