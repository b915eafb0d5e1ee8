"""How a run begins."""

from contextlib import contextmanager

import pytest

from ka_ray.distributed.capacity import Host
from ka_ray.distributed.cluster import Cluster
from ka_ray.runs import context as module
from ka_ray.runs.context import open_context
from ka_ray.tracking import NullTracker


@pytest.mark.parametrize("link", ["http://host:5000/#/experiments/1/runs/abc", None])
def test_a_run_says_first_of_all_where_a_browser_shows_it(load_config, tmp_path, monkeypatch, capsys, link):
    @contextmanager
    def connect(config):
        yield Cluster((Host("here", {"CPU": 8.0}),))

    @contextmanager
    def open_tracker(*arguments):
        tracker = NullTracker()
        tracker.link = link
        yield tracker

    monkeypatch.setattr(module, "connect", connect)
    monkeypatch.setattr(module, "open_tracker", open_tracker)
    with open_context(load_config(), tmp_path, "run") as run:
        run.notify("then the rest")
    expected = ["then the rest"] if link is None else [f"mlflow: {link}", "then the rest"]
    assert capsys.readouterr().out.splitlines() == expected
