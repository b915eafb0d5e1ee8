"""A library call leaves the settings of the process as they were."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from process_settings import read_settings
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
        os.environ["KA_RAY_BLOCK"] = "set in the block"
    assert os.environ.pop("KA_RAY_BLOCK") == "set in the block"
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


def test_a_refused_connection_changes_no_settings(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may have connected it
    before = read_settings()
    with (
        pytest.raises(InputError, match="address of a cluster's job server"),
        connect(RayConfig(address="http://x:1")),
    ):
        pass
    assert read_settings() == before


@pytest.mark.ray
def test_an_already_connected_ray_keeps_running_with_its_settings(cluster):
    context = DataContext.get_current()
    with attributes(context, enable_progress_bars=True):
        before = read_settings()
        with suppress(ValueError), connect(RayConfig()) as connected:
            assert not context.enable_progress_bars
            assert connected.size == cluster.size
            assert cluster.own
            assert not connected.own
            raise ValueError
        assert read_settings() == before
        assert connected.hosts == cluster.hosts


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("how", ["returns", "raises"])
def test_settings_are_restored_after_a_ray_that_connect_has_started(how):
    """In a separate process, because this one may already be connected."""
    script = Path(__file__).parent / "process_settings.py"
    # Without the variables that `connect` has set in this process.
    environment = {name: value for name, value in os.environ.items() if name not in LOCAL_RAY_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    subprocess.run([sys.executable, str(script), how], check=True, timeout=300, env=environment)
