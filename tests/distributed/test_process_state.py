"""A library call leaves the settings of the process as they were."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from process_settings import settings
from ray.data import DataContext

from ka_ray.config import RayConfig
from ka_ray.distributed.cluster import LOCAL_RAY_VARIABLES, connect
from ka_ray.distributed.process_state import attributes, environment_restored, log_level, set_missing
from ka_ray.errors import InputError


def test_variables_that_are_set_are_kept_and_missing_ones_removed_again(monkeypatch):
    monkeypatch.setenv("KA_RAY_OURS", "user's")
    monkeypatch.delenv("KA_RAY_MISSING", raising=False)
    before = dict(os.environ)
    with environment_restored(lambda: set_missing({"KA_RAY_OURS": "default", "KA_RAY_MISSING": "default"})):
        assert (os.environ["KA_RAY_OURS"], os.environ["KA_RAY_MISSING"]) == ("user's", "default")
        os.environ["KA_RAY_BLOCK"] = "of the block"
    assert os.environ.pop("KA_RAY_BLOCK") == "of the block"
    assert dict(os.environ) == before


def test_settings_are_put_back_also_after_an_error():
    logger, before = logging.getLogger("ka_ray.test"), dict(os.environ)

    class Target:
        field = 1

    def change_and_fail():
        os.environ["KA_RAY_HALF"] = "done"
        raise KeyError

    with suppress(ValueError), log_level("ka_ray.test", 13), attributes(Target, field=2):
        assert (logger.level, Target.field) == (13, 2)
        raise ValueError
    assert (logger.level, Target.field) == (logging.NOTSET, 1)
    with pytest.raises(KeyError), environment_restored(change_and_fail):
        pass
    assert dict(os.environ) == before


def test_a_connection_that_is_refused_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have connected this process
    before = settings()
    with (
        pytest.raises(InputError, match="address of a cluster's job server"),
        connect(RayConfig(address="http://x:1")),
    ):
        pass
    assert settings() == before


@pytest.mark.ray
def test_a_ray_that_was_connected_keeps_running_with_its_settings(cluster):
    context = DataContext.get_current()
    with attributes(context, enable_progress_bars=True):
        before = settings()
        with suppress(ValueError), connect(RayConfig()) as connected:
            assert not context.enable_progress_bars
            assert connected.size == cluster.size
            raise ValueError
        assert settings() == before
        assert connected.hosts == cluster.hosts


@pytest.mark.ray
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_a_ray_that_was_started_leaves_nothing_behind(how):
    """In a process of its own, because this one is connected."""
    script = Path(__file__).parent / "process_settings.py"
    # Without what this process has from being connected.
    environment = {name: value for name, value in os.environ.items() if name not in LOCAL_RAY_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, str(script), how], check=True, timeout=300, env=environment)
