"""What a training worker reports: its progress to the driver, and each epoch's metrics to Ray Train."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint

from ka_ray.numerics.ranks import on_any_rank, rank, world_size
from ka_ray.training.fit import Progress

REPORT_EVERY_S = 10.0
"""Minimum number of seconds between two reports to Ray Train; of shorter epochs, only some are reported.

Ray Train fetches one report per worker every two seconds (Ray 2.60). A worker that reports more often is
blocked in `ray.train.report`, so its training would have to wait."""

POINTER = "output_folder.json"
"""The only file of the checkpoints that Ray Train gets; it names the output folder."""


class WorkerReporter:
    """Passes on the progress of one worker; every worker of a group has one.

    The driver gets it through our own queue, not by a callback of Ray Train: a `UserCallback` runs in Ray
    Train's controller, a process that has neither the run's progress bars nor its tracker.

    Ray Train gets the metrics of epochs, for its dashboard and for `ray.train.Result.from_path`. It keeps
    metrics only together with a checkpoint, and copies a checkpoint that is outside its own folder. So its
    checkpoint is a small file that names the output folder, which has the finished stages and the last epoch
    of the current one. A run always resumes from the output folder.

    Args:
        queue: A :class:`ka_ray.distributed.actors.ReportQueue`, which the driver empties.
        output: The run's output folder.
    """

    def __init__(self, queue: Any, output: Path) -> None:
        self._queue, self._output = queue, output
        self._reported = time.monotonic()
        self._epoch: Progress | None = None
        if rank() == 0:
            queue.add.remote({"workers": world_size()})

    def __call__(self, progress: Progress) -> None:
        """Report progress: rank 0 at any time, and all ranks together at the end of every epoch."""
        if rank() == 0:
            ray.get(self._queue.add.remote(asdict(progress)))
        if progress.epoch_ended:
            self._epoch = progress
            # `ray.train.report` waits for all ranks; their clocks differ, so they decide together.
            if on_any_rank(time.monotonic() - self._reported > REPORT_EVERY_S):
                self.report_epoch()

    def report_epoch(self) -> None:
        """Report the last epoch to Ray Train, unless that was done; all ranks must call this together."""
        if self._epoch is None:
            return
        epoch, self._epoch = self._epoch, None
        with TemporaryDirectory() as folder:
            checkpoint = None
            if rank() == 0:  # Ray Train would merge the same file of every rank
                (Path(folder) / POINTER).write_text(
                    json.dumps({"output_folder": str(self._output)}), encoding="utf-8"
                )
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(_metrics(epoch), checkpoint=checkpoint)
        self._reported = time.monotonic()


def _metrics(epoch: Progress) -> dict[str, Any]:
    counts = {name: getattr(epoch, name) for name in ("stage", "epoch", "epochs", "images", "seconds")}
    losses = {name if name == "loss" else f"loss_{name}": loss for name, loss in epoch.losses.items()}
    return counts | {"images_per_s": epoch.images / epoch.seconds} | losses
