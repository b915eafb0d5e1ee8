"""Test that Ray's notice of a spot node that goes makes training save in the middle of an epoch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from ka_ray.distributed import train
from ka_ray.distributed.failures import lost, preempted
from ka_ray.distributed.train import WorkerGroup, train_in_workers
from ka_ray.errors import ClusterError

SCRIPT = Path(__file__).with_name("told_to_go.py")


@pytest.mark.ray
@pytest.mark.slow
def test_training_is_saved_in_the_middle_of_an_epoch_when_its_node_will_go(tmp_path):
    paths = [str(Path(train.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "accepted (True" in done.stdout
    (saved,) = re.findall(r"saved (\d+) of 150", done.stdout)
    assert 0 < int(saved) < 150


def test_a_node_that_was_taken_away_is_lost_but_no_failure(monkeypatch, tmp_path):
    """Only failures count against `ray.max_failures`: a provider may take spot nodes away at any time."""
    gone = PreemptionError(PreemptionInfo(None, {"node": [0]}))
    assert lost(gone)
    assert preempted(gone)
    died = ConnectionError("died")
    assert lost(died)
    assert not preempted(died)

    from ka_ray.config import RayConfig, Resources

    errors = [gone] * 5 + [died] * 2 + [gone] * 3
    groups: list[str] = []

    def run_group(work, group, experiment, forwarder):
        groups.append(experiment)
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr(train, "_run_group", run_group)
    monkeypatch.setattr(train, "_wait_for_room", lambda *arguments: None)
    monkeypatch.setattr(train, "ReportForwarder", lambda *arguments: None)
    group = WorkerGroup(RayConfig(max_failures=2), Resources(cpu=1), tmp_path, "run")
    train_in_workers(print, group, print, lambda text: None)
    assert len(groups) == 11
    errors[:] = [died, gone, died, died]
    with pytest.raises(ClusterError, match="lost workers 3 times"):
        train_in_workers(print, group, print, lambda text: None)


def test_a_group_leaves_restarts_to_us_also_those_of_spot_nodes(monkeypatch, tmp_path):
    from ka_ray.config import RayConfig, Resources

    monkeypatch.setattr(train, "workers_with_room", lambda *arguments: (1, 1))
    made = {}
    monkeypatch.setattr(train, "TorchTrainer", lambda loop, **arguments: made.update(arguments))
    group = WorkerGroup(RayConfig(workers=1), Resources(cpu=1), tmp_path, "run")
    train._trainer(lambda: None, group, "run-1")
    config = made["run_config"].failure_config
    assert (config.max_failures, config.max_preemption_failures) == (0, 0)
