"""Uses of Ray beyond its stable API. Each docstring says what breaks if an upgrade changes them."""

import os
import signal
import threading
import typing
import warnings

import pytest
import ray
import ray._private.ray_constants
import ray._private.state
import ray.data
import torch.distributed
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
from ray.train.v2._internal import exceptions as private_exceptions
from ray.train.v2.api import exceptions as public_exceptions
from ray.util.state.common import TypeWorkerExitType

from ka_ray.config import RayConfig, Resources
from ka_ray.distributed.actors import ReportQueue
from ka_ray.distributed.error_log import LISTENER
from ka_ray.distributed.failures import LOST_TRAINING
from ka_ray.distributed.ray_address import find_cluster, find_version
from ka_ray.distributed.resources import remote_options
from ka_ray.distributed.restarts import OUT_OF_MEMORY, why_died
from ka_ray.submission import client


@pytest.mark.ray
def test_ray_reports_which_nodes_an_autoscaler_may_add(cluster):
    """cluster._grows calls it. If it is removed, find another source, or add a config key for autoscaling."""
    assert not ray._private.state.state.get_max_resources_from_cluster_config()
    assert not cluster.grows


@pytest.mark.parametrize("name", sorted(LOST_TRAINING))
def test_errors_of_lost_training_workers_exist_in_ray_or_torch(name):
    """failures.LOST_TRAINING. If one is renamed, a lost worker ends the run instead of being replaced."""
    assert any(hasattr(m, name) for m in (private_exceptions, public_exceptions, torch.distributed))


def test_training_errors_hold_the_errors_of_workers_and_controller():
    """failures._chain reads the attributes. If one is renamed, the user sees Ray's error, not the reason."""
    reason = ValueError("the reason")
    assert public_exceptions.WorkerGroupError("message", {0: reason}).worker_failures == {0: reason}
    assert public_exceptions.ControllerError(reason).controller_failure is reason


def test_the_job_client_reads_the_variable_that_overrides_ray_address():
    """submission.client sets it. If it is renamed, jobs go to RAY_ADDRESS instead of the given --address."""
    assert ray._private.ray_constants.RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE == client._ADDRESS_VARIABLE


def test_ray_has_an_exit_type_for_workers_killed_for_lack_of_memory():
    """restarts.why_died compares it. If it is renamed, messages no longer say that memory ran out."""
    assert OUT_OF_MEMORY in typing.get_args(TypeWorkerExitType)


@pytest.mark.ray
def test_a_head_tells_its_version_of_ray(cluster):
    """ray_address asks for it. If that changes, a running head is taken for something else, or not found."""
    address = ray.get_runtime_context().gcs_address
    assert find_version(address) == ray.__version__
    assert find_cluster(RayConfig(address=address)).value == address


@pytest.mark.ray
def test_rays_listener_thread_has_the_name_by_which_its_lines_are_found(cluster):
    """error_log.LISTENER. If it is renamed, Ray's lines about dead workers appear on the terminal again."""
    assert LISTENER in {thread.name for thread in threading.enumerate()}


@pytest.mark.ray
def test_ray_reports_why_a_worker_died(cluster):
    """restarts.why_died reads the state API. If its answer changes, messages give no or a wrong reason."""

    @ray.remote(max_retries=0)
    def die(queue):
        ray.get(queue.add.remote({"worker": ray.get_runtime_context().get_worker_id()}))
        os.kill(os.getpid(), signal.SIGKILL)

    queue = ReportQueue.remote()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(die.remote(queue))
    (entry,) = ray.get(queue.take.remote())
    unknown = why_died([])
    assert unknown == "Ray does not know why"
    reason = why_died([entry["worker"]])
    assert reason != unknown
    assert "dashboard does not say" not in reason
    assert "OOM" not in reason  # which Ray lists as a possible cause for every dead worker


@pytest.mark.ray
def test_ray_data_accepts_all_options_by_name(cluster):
    """resources.remote_options. Options not passed by name are `ray_remote_args`, which Ray 2.64 removes."""
    options = remote_options(Resources(cpu=0.5, gpu=0, resources={"disk": 1}, label={"group": "x"}))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ray_remote_args")
        rows = ray.data.range(1).map_batches(lambda batch: batch, compute=TaskPoolStrategy(size=1), **options)
        rows.map_batches(ReturnBatch, batch_size=1, compute=ActorPoolStrategy(size=1), **options)
    context = DataContext.get_current()
    assert {"enable_progress_bars", "print_on_execution_start"} <= set(vars(context))


class ReturnBatch:
    def __call__(self, batch):
        return batch
