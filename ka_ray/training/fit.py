"""The one training loop: a learner, its batches, a few settings. Plain torch, alone or under DDP."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import rank, sum_over_ranks, world_size
from ka_ray.training.batches import Batches
from ka_ray.training.checkpoint import load_epoch, save_epoch

REPORT_EVERY_S = 2.0
WARM_UP = 0.1
"""The share of all steps in which the learning rate rises."""

EPOCH_SEEDS = 1_000_003


@dataclass(frozen=True)
class FitSettings:
    """How to fit: AdamW, learning rate up linearly to its peak and down as a cosine.

    Attributes:
        images: Stop after this many images (whole batches of them) instead of after ``epochs``.
        beta2: Adam's memory of squared gradients. 0.95 forgets the large early ones within a stage of a few
            hundred steps; codes and layers, whose errors go to nearly zero, need that.
        checkpoint: A file, reachable by every rank, that is written after every epoch; where it is there, the
            fit goes on behind its last epoch, with the same result as one that was never interrupted.
    """

    stage: str
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    beta2: float = 0.999
    images: int | None = None
    checkpoint: Path | None = None

    def steps(self, batches: Batches) -> int:
        """How many steps it takes over all epochs."""
        if self.images is None:
            return self.epochs * batches.steps_per_epoch
        return max(1, self.images // batches.batch_size)


@dataclass(frozen=True)
class Progress:
    """Where a stage stands. ``losses`` are means over the epoch so far, over all ranks at its end."""

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images: int
    seconds: float
    losses: dict[str, float]

    @property
    def epoch_ended(self) -> bool:
        """Whether this is the last word on its epoch."""
        return self.step == self.steps


ProgressCallback = Callable[[Progress], None]


def fit(
    learner: nn.Module, batches: Batches, settings: FitSettings, report: ProgressCallback
) -> list[Progress]:
    """Minimise the sum of a learner's losses, each a mean over the batch's images; in place.

    In a process group, each rank's gradients count by its share of the batch: the steps are one process's.

    Args:
        learner: Maps a batch to named scalar losses; its parameters without gradient stay as they are.
        batches: What it sees, once an epoch.
        settings: Epochs and rates.
        report: Called by rank 0 alone, every two seconds and at every epoch's end.

    Returns:
        One record an epoch, the same on every rank.

    Raises:
        FloatingPointError: A loss is no longer finite.
    """
    optimizer = _optimizer(learner, settings, fused=batches.device.type == "cuda")
    meter = _Meter(batches, settings, report)
    step = _resume(settings.checkpoint, learner, optimizer, meter)
    model: nn.Module = DistributedDataParallel(learner) if world_size() > 1 else learner
    learner.train()
    for epoch in range(len(meter.history) + 1, meter.epochs + 1):
        meter.start(epoch)
        torch.manual_seed(batches.seed * EPOCH_SEEDS + epoch)  # of dropout: an epoch is the same when resumed
        for batch in islice(batches.epoch(epoch), meter.steps):
            _set_rate(optimizer, settings.learning_rate * rate_factor(step, meter.total_steps))
            losses: dict[str, Tensor] = model(batch)
            optimizer.zero_grad(set_to_none=True)
            (torch.stack(list(losses.values())).sum() * batches.weight).backward()
            optimizer.step()
            step += 1
            meter.add(losses)
        meter.end()
        if settings.checkpoint is not None and rank() == 0 and epoch < meter.epochs:
            save_epoch(settings.checkpoint, learner, optimizer, step, meter.history)
    learner.eval()
    return meter.history


def _resume(
    checkpoint: Path | None, learner: nn.Module, optimizer: torch.optim.Optimizer, meter: "_Meter"
) -> int:
    """Go on behind the last epoch that was kept, if one was; give the steps that were taken."""
    steps, records = 0, list[dict[str, Any]]()
    if checkpoint is not None and checkpoint.exists():
        steps, records = load_epoch(checkpoint, learner, optimizer)
    meter.resume([Progress(**record) for record in records])
    everyone = sum_over_ranks(torch.tensor([float(steps)], device=next(learner.parameters()).device))
    if int(everyone) != steps * world_size():
        raise InputError(f"{checkpoint}: the workers do not see the same file; its folder must be shared")
    return steps


def _optimizer(learner: nn.Module, settings: FitSettings, fused: bool) -> torch.optim.AdamW:
    parameters = [p for p in learner.parameters() if p.requires_grad]
    rate, decay, betas = settings.learning_rate, settings.weight_decay, (0.9, settings.beta2)
    return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay, fused=fused)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def rate_factor(step: int, total_steps: int) -> float:
    """Give the learning rate of a step as a share of its peak.

    Example:
        >>> [round(rate_factor(step, 20), 2) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    rising = max(1, round(WARM_UP * total_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total_steps - rising)))


class _Meter:
    """Adds losses up without waiting for the device, and reports now and then."""

    def __init__(self, batches: Batches, settings: FitSettings, report: ProgressCallback) -> None:
        self._batches, self._settings, self._report = batches, settings, report
        self.history: list[Progress] = []
        self.total_steps = settings.steps(batches)
        self.epochs = math.ceil(self.total_steps / batches.steps_per_epoch)
        self._began = self._reported = time.perf_counter()

    def resume(self, history: list[Progress]) -> None:
        self.history = history
        self._began -= history[-1].seconds if history else 0.0

    def start(self, epoch: int) -> None:
        self._epoch, self._step = epoch, 0
        before = (epoch - 1) * self._batches.steps_per_epoch
        self.steps = min(self._batches.steps_per_epoch, self.total_steps - before)
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        self._step += 1
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss.detach() * self._batches.weight
        due = time.perf_counter() - self._reported > REPORT_EVERY_S
        if rank() == 0 and due and self._step < self.steps:
            self._report(self._progress(torch.stack(list(self._sums.values()))))
            self._reported = time.perf_counter()

    def end(self) -> None:
        sums = sum_over_ranks(torch.stack(list(self._sums.values()))) / world_size()
        progress = self._progress(sums)
        if not all(math.isfinite(loss) for loss in progress.losses.values()):
            raise FloatingPointError(
                f"stage {progress.stage}, epoch {progress.epoch}: the loss is {progress.losses}; "
                "lower its learning_rate"
            )
        self.history.append(progress)
        if rank() == 0:
            self._report(progress)

    def _progress(self, sums: Tensor) -> Progress:
        means = (sums / self._step).tolist()
        seen = (self._epoch - 1) * self._batches.steps_per_epoch + self._step
        return Progress(
            stage=self._settings.stage,
            epoch=self._epoch,
            epochs=self.epochs,
            step=self._step,
            steps=self.steps,
            images=seen * self._batches.batch_size,
            seconds=time.perf_counter() - self._began,
            losses=dict(zip(self._sums, means, strict=True)),
        )
