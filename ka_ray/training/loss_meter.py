"""Sum up the losses of the training loop, and report them."""

import math
import time

import torch
from torch import Tensor

from ka_ray.numerics.ranks import rank, sum_over_ranks, world_size
from ka_ray.training.batches import Batches
from ka_ray.training.interruption import MiddleOfEpoch
from ka_ray.training.progress import Progress, ProgressCallback
from ka_ray.training.settings import FitSettings

REPORT_INTERVAL_S = 2.0
"""Seconds between two progress reports within an epoch."""


class LossMeter:
    """Sums up losses, reports them at intervals, and checks at the end of an epoch that they are finite.

    The sums stay on the device, because reading a loss in each step would wait for the device each time.

    Args:
        batches: The batches that are trained on.
        settings: The settings of the training.
        report: Called with the progress, see :func:`ka_ray.training.fit.fit`.

    Attributes:
        history: The records of the epochs that have ended.
        middle: Where in an epoch training goes on that was saved there; None: at the start of an epoch.
        total_steps: Number of steps of all epochs.
        epochs: Number of epochs.
        step: Number of steps taken in this epoch.
        steps: Number of steps of this epoch.
        sums: Name -> sum of the losses of this epoch's steps.
    """

    def __init__(self, batches: Batches, settings: FitSettings, report: ProgressCallback) -> None:
        self._batches, self._settings, self._report = batches, settings, report
        self.history: list[Progress] = []
        self.middle: MiddleOfEpoch | None = None
        self.total_steps = settings.steps(batches)
        self.epochs = math.ceil(self.total_steps / batches.steps_per_epoch)
        self._began = self._reported = time.perf_counter()
        self._waited = 0.0

    def resume(self, history: list[Progress]) -> None:
        """Go on behind the epochs of an earlier attempt."""
        self.history = history
        # Count the seconds of earlier attempts, too.
        self._began -= history[-1].seconds if history else 0.0
        self._waited += history[-1].waited if history else 0.0

    def start_epoch(self, epoch: int) -> None:
        """Forget the losses of the epoch before."""
        self._epoch, self.step = epoch, 0
        # With a budget of images the last epoch may be shorter.
        steps_before = (epoch - 1) * self._batches.steps_per_epoch
        self.steps = min(self._batches.steps_per_epoch, self.total_steps - steps_before)
        self.sums: dict[str, Tensor] = {}

    def go_to_middle(self) -> None:
        """Go on in the middle of an epoch, if training was saved there."""
        middle, self.middle = self.middle, None
        if middle is not None:
            middle.restore_random()
            self.step = middle.step
            self.sums = {name: value.to(self._batches.device) for name, value in middle.sums.items()}

    def add_wait(self, seconds: float) -> None:
        """Add seconds in which a batch was read."""
        self._waited += seconds

    def add(self, losses: dict[str, Tensor]) -> None:
        """Add the losses of a step, and report them if the last report is old."""
        self.step += 1
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0) + loss.detach() * self._batches.loss_weight
        due = time.perf_counter() - self._reported > REPORT_INTERVAL_S
        if rank() == 0 and due and self.step < self.steps:
            self._report(self._progress(torch.stack(list(self.sums.values()))))
            self._reported = time.perf_counter()

    def end_epoch(self) -> None:
        """Report the mean losses over all ranks; raise FloatingPointError if one is not finite."""
        sums = sum_over_ranks(torch.stack(list(self.sums.values()))) / world_size()
        progress = self._progress(sums)
        if not all(math.isfinite(loss) for loss in progress.losses.values()):
            raise FloatingPointError(
                f"stage {progress.stage}, epoch {progress.epoch}: the loss is not finite "
                f"({progress.losses}); lower the learning_rate of {progress.stage}"
            )
        self.history.append(progress)
        self._report(progress)

    def _progress(self, sums: Tensor) -> Progress:
        means = (sums / self.step).tolist()
        steps_taken = (self._epoch - 1) * self._batches.steps_per_epoch + self.step
        return Progress(
            stage=self._settings.stage,
            epoch=self._epoch,
            epochs=self.epochs,
            step=self.step,
            steps=self.steps,
            images=steps_taken * self._batches.batch_size,
            seconds=time.perf_counter() - self._began,
            losses=dict(zip(self.sums, means, strict=True)),
            waited=self._waited,
        )
