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
from ka_ray.distributed.capacity import needs
from ka_ray.distributed.epoch_reports import WorkerReporter
from ka_ray.distributed.failures import last_line, lost, unwrap
from ka_ray.distributed.ray_storage import new_experiments, storage
from ka_ray.distributed.resource_plan import shortage_of_workers, workers_with_room
from ka_ray.errors import ClusterError
from ka_ray.training.fit import Progress, ProgressCallback

Work = Callable[[torch.device, ProgressCallback], None]
"""The code of every worker, called with its device and a callback for progress reports."""

POLL_S = 0.5

RESIZE_S = 30.0
"""How often an elastic group checks whether there is room for more workers."""


@dataclass(frozen=True)
class WorkerGroup:
    """Which workers train, and for which run.

    Attributes:
        config: How many workers, and how often they may be lost consecutively without a finished epoch.
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
    work: Work, group: WorkerGroup, report: ProgressCallback, tell: Callable[[str], None]
) -> None:
    """Run code in every worker of one group, in a torch process group.

    All stages share one group: starting one is slow. When workers or nodes are lost, a new group starts.

    Args:
        work: Runs in each worker; writes its results to files and resumes from them.
        group: The workers.
        report: Called on the driver with the reports of rank 0, in order, from a separate thread.
        tell: Called on the driver with messages for the user: lost workers, the size of a new group.

    Raises:
        ClusterError: Workers were lost repeatedly.
        Exception: The error that a worker raised itself, or else the first one that ``report`` raised.
    """
    failures, ended, errors = 0, set[tuple[str, int]](), list[Exception]()
    for experiment in new_experiments(group.records, group.name):
        follower, before = ReportForwarder(report, tell, ended, errors), len(ended)
        try:
            _run_group(work, group, experiment, follower)
            break
        except Exception as error:
            meant = unwrap(error)
            if meant is not error or not lost(error):
                raise meant from error
            failures = 1 if len(ended) > before else failures + 1
            _check_again(failures, group.config, error)
            tell(f"training workers were lost, starting others: {last_line(str(error))}")
            _wait_for_room(group.config, group.share, tell)
    if errors:
        raise errors[0]


def _check_again(failures: int, config: RayConfig, error: Exception) -> None:
    if failures > config.max_failures:
        raise ClusterError(
            f"training lost workers {failures} times in a row without an epoch in between, or they waited "
            f"for each other longer than ray.timeout_s = {config.timeout_s}: {last_line(str(error))}"
        ) from error


def _run_group(work: Work, group: WorkerGroup, experiment: str, follower: "ReportForwarder") -> None:
    queue = follower.queue

    def train_loop_per_worker() -> None:
        torch.set_num_threads(max(1, round(group.share.cpu)))
        reporter = WorkerReporter(queue, group.output)
        work(ray.train.torch.get_device(), reporter)
        reporter.report_epoch()

    with follower:
        _trainer(train_loop_per_worker, group, experiment).fit()


def _wait_for_room(config: RayConfig, share: Resources, tell: Callable[[str], None]) -> None:
    """Wait until the nodes that are left, or come, hold a group; Ray Train would wait for ever, silently.

    Raises:
        ClusterError: They do not for ``ray.timeout_s``.
    """
    began, problem = time.monotonic(), shortage_of_workers(config, share)
    if problem is not None:
        tell(f"waiting for nodes: {problem}")
    while problem is not None:
        if time.monotonic() - began > config.timeout_s:
            raise ClusterError(f"after ray.timeout_s = {config.timeout_s}: {problem}")
        time.sleep(POLL_S)
        problem = shortage_of_workers(config, share)


def _trainer(train_loop_per_worker: Callable[[], None], group: WorkerGroup, experiment: str) -> TorchTrainer:
    config, share = group.config, group.share
    least, most = workers_with_room(config, share)
    return TorchTrainer(
        train_loop_per_worker,
        scaling_config=ScalingConfig(
            elastic_resize_monitor_interval_s=RESIZE_S,
            num_workers=least if least == most else (least, most),  # type: ignore[arg-type]  # V2 takes both
            use_gpu=share.gpu > 0,
            resources_per_worker=needs(share),
            label_selector=dict(share.label) or None,  # type: ignore[call-arg]  # of V2
        ),
        run_config=RunConfig(
            name=experiment,
            **storage(group.records),
            # Ray Train would start a group again after any error, also one that happens every time, and count
            # all failures of a run. `train_in_workers` stops at a mistake, counts only failures without a
            # finished epoch in between, and says when it waits for nodes.
            failure_config=FailureConfig(max_failures=0),
        ),
        torch_config=TorchConfig(timeout_s=config.timeout_s),
    )


class ReportForwarder:
    """Forwards the reports of rank 0 from a separate thread while its block runs.

    :class:`ka_ray.distributed.epoch_reports.WorkerReporter` explains why they come through a queue.

    Args:
        report: Receives the reports.
        tell: Receives messages for the user.
        ended: Gets the stage and the number of every epoch that has ended.
        errors: Gets the errors that ``report`` raises.
    """

    def __init__(
        self,
        report: ProgressCallback,
        tell: Callable[[str], None],
        ended: set[tuple[str, int]],
        errors: list[Exception],
    ) -> None:
        self._report, self._tell, self._epochs, self._errors = report, tell, ended, errors
        self.queue = beside_driver(ReportQueue)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        last_round = False
        while not last_round:
            last_round = self._ended.wait(POLL_S)
            for entry in ray.get(self.queue.take.remote()):
                try:
                    self._hand_on(entry)
                except Exception as error:  # a tracker out of reach must not cost hours of training
                    self._errors.append(error)

    def _hand_on(self, entry: dict[str, Any]) -> None:
        if "workers" in entry:
            return self._tell(f"a group of {entry['workers']} workers has begun")
        progress = Progress(**entry)
        if progress.epoch_ended:
            self._epochs.add((progress.stage, progress.epoch))
        return self._report(progress)
