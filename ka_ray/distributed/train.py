"""Run plain training code in a group of Ray Train workers."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ka_ray.config import RayConfig
from ka_ray.distributed.actors import Journal
from ka_ray.distributed.errors import unwrap
from ka_ray.distributed.storage import storage
from ka_ray.training.fit import Progress, Report

Work = Callable[[torch.device, Report], None]
"""What every worker runs: its device, and where rank 0 reports to."""

POLL_S = 0.5


def train_in_workers(work: Work, config: RayConfig, folder: Path, report: Report) -> None:
    """Run ``work`` in every worker of one group, under a torch process group.

    All stages go through one call: a group takes long to start (every worker imports torch).

    Args:
        work: Runs in each worker; leaves its results in files.
        config: Workers and their resources.
        folder: For Ray Train's own records; reachable by every node.
        report: Called on the driver with rank 0's reports, in order, from a thread of its own.

    Raises:
        Exception: What a worker raised; else, after the work is done, what ``report`` raised first.
    """
    journal = Journal.remote()  # type: ignore[attr-defined]  # ray.remote class

    def in_worker() -> None:
        torch.set_num_threads(max(1, round(config.cpus_per_worker)))
        work(ray.train.torch.get_device(), lambda entry: ray.get(journal.add.remote(asdict(entry))))

    trainer = _trainer(in_worker, config, folder)
    ended, errors = threading.Event(), list[Exception]()
    follower = threading.Thread(target=_follow, args=(journal, report, ended, errors), daemon=True)
    follower.start()
    try:
        trainer.fit()
    except Exception as error:
        raise unwrap(error) from error
    finally:
        ended.set()
        follower.join()
    if errors:
        raise errors[0]


def _trainer(in_worker: Callable[[], None], config: RayConfig, folder: Path) -> TorchTrainer:
    return TorchTrainer(
        in_worker,
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=_resources(config),
        ),
        run_config=RunConfig(
            name=f"train-{time.time_ns()}",
            **storage(folder),
            failure_config=FailureConfig(max_failures=0),
        ),
        torch_config=TorchConfig(timeout_s=config.timeout_s),
    )


def _resources(config: RayConfig) -> dict[str, float]:
    resources = {"CPU": config.cpus_per_worker}
    return resources | {"GPU": config.gpus_per_worker} if config.gpus_per_worker > 0 else resources


def _follow(journal: Any, report: Report, ended: threading.Event, errors: list[Exception]) -> None:
    last_round = False
    while not last_round:
        last_round = ended.wait(POLL_S)
        for entry in ray.get(journal.take.remote()):
            try:
                report(Progress(**entry))
            except Exception as error:  # a tracker out of reach must not cost hours of training
                errors.append(error)
