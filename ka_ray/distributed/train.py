"""Run plain training code in a group of Ray Train workers."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ka_ray.config import RayConfig, Resources
from ka_ray.distributed.actors import ReportQueue, beside_driver
from ka_ray.distributed.capacity import ray_resources
from ka_ray.distributed.epoch_reports import WorkerReporter
from ka_ray.distributed.failures import last_line, lost, preempted, unwrap
from ka_ray.distributed.ray_storage import new_experiment_names, storage_arguments
from ka_ray.distributed.resource_plan import shortage_of_workers, workers_with_room
from ka_ray.errors import ClusterError
from ka_ray.training.fit import Progress, ProgressCallback
from ka_ray.training.interruption import ask_for_notice

Work = Callable[[torch.device, ProgressCallback], None]
"""The code of every worker, called with its device and a callback for progress reports."""

POLL_S = 0.5
"""Seconds between two checks of the queue of reports, and of the nodes while waiting for room."""

RESIZE_S = 30.0
"""How often an elastic group checks whether there is room for more workers."""


@dataclass(frozen=True)
class WorkerGroup:
    """The workers that train, and the run that they train for.

    Attributes:
        config: The config's ``ray`` section: the number of workers, and how often in a row they may be lost
            without a finished epoch in between.
        share: The resources of each worker.
        output: The output folder, reachable by every node; Ray Train keeps its records in its folder ``ray``.
        name: The name of the run. Ray Train's dashboard shows its groups of workers as NAME-1, NAME-2 ...
    """

    config: RayConfig
    share: Resources
    output: Path
    name: str

    @property
    def records(self) -> Path:
        """The folder of Ray Train's own records."""
        return self.output / "ray"


def train_in_workers(
    work: Work, group: WorkerGroup, report: ProgressCallback, notify: Callable[[str], None]
) -> None:
    """Run code in every worker of one group, in a torch process group.

    All stages share one group: starting one is slow. When workers or nodes are lost, a new group starts.

    Args:
        work: Runs in each worker; writes its results to files and resumes from them.
        group: The workers.
        report: Called on the driver with the reports of rank 0, in order, from a separate thread.
        notify: Called on the driver with messages for the user: lost workers, the size of a new group.

    Raises:
        ClusterError: Workers were lost repeatedly without a finished epoch in between.
        Exception: The error that the code of a worker raised, or else the first error of ``report``.
    """
    failures, ended, errors = 0, set[tuple[str, int]](), list[Exception]()
    for experiment in new_experiment_names(group.records, group.name):
        forwarder, ended_before = ReportForwarder(report, notify, ended, errors), len(ended)
        try:
            _run_group(work, group, experiment, forwarder)
            break
        except Exception as error:
            user_error = unwrap(error)  # `error` itself if it wraps no error that is meant for the user
            if user_error is not error or not lost(error):
                raise user_error from error  # a new group would raise it again
            # An epoch that ended in this group is progress: the count of failures starts again. A node that
            # the provider took away after a notice is no failure: training was saved before.
            failures = (0 if len(ended) > ended_before else failures) + (0 if preempted(error) else 1)
            _check_failures(failures, group.config, error)
            notify(f"training workers were lost, starting others: {last_line(str(error))}")
            _wait_for_room(group.config, group.share, notify)
    if errors:
        raise errors[0]


def node_will_go() -> bool:
    """Return whether a node of this group of workers will be taken away; all ranks call this together.

    Ray knows it from the provider of spot nodes by way of the autoscaler, or from ``ray drain-node``. Ray
    Train's function for it is alpha (Ray 2.60).
    """
    return ray.train.get_preemption_info() is not None


def _check_failures(failures: int, config: RayConfig, error: Exception) -> None:
    if failures > config.max_failures:
        raise ClusterError(
            f"training lost workers {failures} times in a row without an epoch in between, or they waited "
            f"for each other longer than ray.timeout_s = {config.timeout_s}: {last_line(str(error))}"
        ) from error


def _run_group(work: Work, group: WorkerGroup, experiment: str, forwarder: "ReportForwarder") -> None:
    """Run the code in one group of workers until it ends or workers are lost."""
    queue = forwarder.queue

    def train_loop_per_worker() -> None:
        torch.set_num_threads(max(1, round(group.share.cpu)))
        reporter = WorkerReporter(queue, group.output)
        ask_for_notice(node_will_go)
        work(ray.train.torch.get_device(), reporter)
        reporter.report_epoch()  # the last epoch: reports to Ray Train are only made now and then

    with forwarder:
        _trainer(train_loop_per_worker, group, experiment).fit()


def _wait_for_room(config: RayConfig, share: Resources, notify: Callable[[str], None]) -> None:
    """Wait until the cluster has room for a group, on the nodes that are left or on new ones.

    Ray Train would wait, too, but without a message and without a limit of time.

    Raises:
        ClusterError: There is still no room after ``ray.timeout_s``.
    """
    began, problem = time.monotonic(), shortage_of_workers(config, share)
    if problem is not None:
        notify(f"waiting for nodes: {problem}")
    while problem is not None:
        if time.monotonic() - began > config.timeout_s:
            raise ClusterError(f"after ray.timeout_s = {config.timeout_s}: {problem}")
        time.sleep(POLL_S)
        problem = shortage_of_workers(config, share)


def _trainer(train_loop_per_worker: Callable[[], None], group: WorkerGroup, experiment: str) -> TorchTrainer:
    config, share = group.config, group.share
    min_workers, max_workers = workers_with_room(config, share)
    num_workers = min_workers if min_workers == max_workers else (min_workers, max_workers)
    return TorchTrainer(
        train_loop_per_worker,
        scaling_config=ScalingConfig(
            elastic_resize_monitor_interval_s=RESIZE_S,
            num_workers=num_workers,  # type: ignore[arg-type]  # Ray Train V2 takes a pair
            use_gpu=share.gpu > 0,
            resources_per_worker=ray_resources(share),
            label_selector=dict(share.label) or None,  # type: ignore[call-arg]  # only in Ray Train V2
        ),
        run_config=RunConfig(
            name=experiment,
            **storage_arguments(group.records),
            # Ray Train's own retries would start a group again after any error, also one that happens every
            # time, and would count all failures of a run. `train_in_workers` retries only after lost workers,
            # counts only failures without a finished epoch in between, and says when it waits for nodes.
            # The same holds for spot nodes that are taken away, which Ray Train counts by themselves.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),  # type: ignore[call-arg]
        ),
        torch_config=TorchConfig(timeout_s=config.timeout_s),
    )


class ReportForwarder:
    """Context manager that forwards the reports of rank 0 from a separate thread.

    :class:`ka_ray.distributed.epoch_reports.WorkerReporter` explains why they come through a queue.

    Args:
        report: Called with every report.
        notify: Called with messages for the user.
        ended: A set, to which the stage and the number of every finished epoch are added.
        errors: A list, to which the errors that ``report`` raises are added.
    """

    def __init__(
        self,
        report: ProgressCallback,
        notify: Callable[[str], None],
        ended: set[tuple[str, int]],
        errors: list[Exception],
    ) -> None:
        self._report, self._notify, self._ended_epochs, self._errors = report, notify, ended, errors
        self.queue = beside_driver(ReportQueue)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._forward_all, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._stopped.set()
        self._thread.join()

    def _forward_all(self) -> None:
        last_round = False
        while not last_round:
            last_round = self._stopped.wait(POLL_S)
            for entry in ray.get(self.queue.take.remote()):
                try:
                    self._forward(entry)
                except Exception as error:  # an unreachable tracker must not end hours of training
                    self._errors.append(error)

    def _forward(self, entry: dict[str, Any]) -> None:
        if "workers" in entry:
            return self._notify(f"a group of {entry['workers']} workers has begun")
        progress = Progress(**entry)
        if progress.epoch_ended:
            self._ended_epochs.add((progress.stage, progress.epoch))
        return self._report(progress)
