"""The training loop that all stages share, in plain torch: in one process, or data-parallel with DDP."""

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
from ka_ray.training.checkpoint import load_training_state, save_training_state

REPORT_INTERVAL_S = 2.0
"""Seconds between two progress reports within an epoch."""

WARMUP_FRACTION = 0.1
"""Fraction of all steps during which the learning rate rises to its peak."""

EPOCH_SEED_STRIDE = 1_000_003
"""The seed of an epoch is ``run seed * this + epoch``. A large prime keeps the seeds of two runs apart."""


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training loop.

    The optimizer is AdamW (Loshchilov and Hutter, ICLR 2019). The learning rate rises linearly to its peak
    and then falls along a cosine.

    Attributes:
        stage: Name of the stage, for progress reports and error messages.
        epochs: Number of epochs; ignored if ``images`` is set.
        learning_rate: Peak of the learning rate.
        weight_decay: Decoupled weight decay of AdamW. Each step shrinks the weights by the factor
            ``1 - learning rate * weight_decay``.
        beta2: Decay rate of AdamW's running mean of squared gradients, in [0, 1).
        images: Number of images to train on, counting repeats, rounded down to whole batches, but at least
            one batch. None: train for ``epochs``.
        checkpoint: File that is written after each epoch but the last one; all ranks must reach it. If it
            exists, training resumes from it, with the same result as uninterrupted training. None: no file.
        unused_parameters: Whether a step may leave out some parameters, such as those of an auxiliary head.
    """

    stage: str
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    beta2: float = 0.999
    images: int | None = None
    checkpoint: Path | None = None
    unused_parameters: bool = False

    def steps(self, batches: Batches) -> int:
        """Return the number of optimizer steps over all epochs."""
        if self.images is None:
            return self.epochs * batches.steps_per_epoch
        return max(1, self.images // batches.batch_size)


@dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Attributes:
        stage: Name of the stage.
        epoch: Number of the current epoch, from 1.
        epochs: Total number of epochs.
        step: Number of steps finished in this epoch.
        steps: Number of steps of this epoch.
        images: Number of images processed since the start of the stage, over all ranks, counting repeats.
        seconds: Seconds since the start of the stage, including those of earlier attempts.
        losses: Name -> mean loss over the steps of this epoch. Within an epoch it is rank 0's mean, at the
            end of the epoch the mean over all ranks.
    """

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
        """Whether this is the report at the end of its epoch."""
        return self.step == self.steps


ProgressCallback = Callable[[Progress], None]
"""Function that is called with each progress report."""


def fit(
    learner: nn.Module, batches: Batches, settings: FitSettings, report: ProgressCallback
) -> list[Progress]:
    """Minimise the sum of a learner's losses, in place.

    Args:
        learner: Module that maps a batch to named scalar losses, each a mean over the batch's images.
        batches: Batches to train on. A step of several ranks equals one of one process with the global batch.
        settings: Number of epochs and settings of the optimizer.
        report: Called by every rank at the end of each epoch, and in between, every two seconds, by rank 0.

    Returns:
        One record per epoch, the same on all ranks.

    Raises:
        FloatingPointError: A loss is not finite.
    """
    optimizer = _optimizer(learner, settings, fused=batches.device.type == "cuda")
    meter = _LossMeter(batches, settings, report)
    step = _resume(settings.checkpoint, learner, optimizer, meter)
    model = learner if world_size() == 1 else _data_parallel(learner, settings)
    learner.train()
    for epoch in range(len(meter.history) + 1, meter.epochs + 1):
        meter.start_epoch(epoch)
        torch.manual_seed(batches.seed * EPOCH_SEED_STRIDE + epoch)  # dropout is the same after a resume
        for batch in islice(batches.epoch(epoch), meter.steps):
            _set_rate(optimizer, settings.learning_rate * learning_rate_factor(step, meter.total_steps))
            losses: dict[str, Tensor] = model(batch)
            optimizer.zero_grad(set_to_none=True)
            # DDP averages gradients over ranks, so the loss of a rank with more images gets a larger weight.
            (torch.stack(list(losses.values())).sum() * batches.loss_weight).backward()
            optimizer.step()
            step += 1
            meter.add(losses)
        meter.end_epoch()
        if settings.checkpoint is not None and rank() == 0 and epoch < meter.epochs:
            save_training_state(settings.checkpoint, learner, optimizer, step, meter.history)
    learner.eval()
    return meter.history


def _resume(
    checkpoint: Path | None, learner: nn.Module, optimizer: torch.optim.Optimizer, meter: "_LossMeter"
) -> int:
    """Restore the state after the last saved epoch, if one exists, and return the number of steps taken."""
    steps, records = 0, list[dict[str, Any]]()
    if checkpoint is not None and checkpoint.exists():
        steps, records = load_training_state(checkpoint, learner, optimizer)
    meter.resume([Progress(**record) for record in records])
    # Ranks that resume from different epochs would wait for each other forever.
    total = sum_over_ranks(torch.tensor([float(steps)], device=next(learner.parameters()).device))
    if int(total) != steps * world_size():
        raise InputError(
            f"checkpoint {checkpoint}: the workers see different files; set `output` to a folder that all "
            "nodes share, or to a URI"
        )
    return steps


def _data_parallel(learner: nn.Module, settings: FitSettings) -> nn.Module:
    return DistributedDataParallel(learner, find_unused_parameters=settings.unused_parameters)


def _optimizer(learner: nn.Module, settings: FitSettings, fused: bool) -> torch.optim.AdamW:
    parameters = [p for p in learner.parameters() if p.requires_grad]
    rate, decay, betas = settings.learning_rate, settings.weight_decay, (0.9, settings.beta2)
    return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay, fused=fused)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate_factor(step: int, total_steps: int) -> float:
    """Return the learning rate of a step as a fraction of its peak: linear warm-up, then a half cosine.

    Args:
        step: Number of the step, from 0.
        total_steps: Number of steps over all epochs.

    Example:
        >>> [round(learning_rate_factor(step, 20), 2) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    warmup_steps = max(1, round(WARMUP_FRACTION * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


class _LossMeter:
    """Sums up losses, reports them at intervals, and checks at the end of an epoch that they are finite.

    The sums stay on the device, because reading a loss in each step would wait for the device each time.
    """

    def __init__(self, batches: Batches, settings: FitSettings, report: ProgressCallback) -> None:
        self._batches, self._settings, self._report = batches, settings, report
        self.history: list[Progress] = []
        self.total_steps = settings.steps(batches)
        self.epochs = math.ceil(self.total_steps / batches.steps_per_epoch)
        self._began = self._reported = time.perf_counter()

    def resume(self, history: list[Progress]) -> None:
        self.history = history
        # Count the seconds of earlier attempts, too.
        self._began -= history[-1].seconds if history else 0.0

    def start_epoch(self, epoch: int) -> None:
        self._epoch, self._step = epoch, 0
        # With a budget of images the last epoch may be shorter.
        steps_before = (epoch - 1) * self._batches.steps_per_epoch
        self.steps = min(self._batches.steps_per_epoch, self.total_steps - steps_before)
        self._sums: dict[str, Tensor] = {}

    def add(self, losses: dict[str, Tensor]) -> None:
        self._step += 1
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss.detach() * self._batches.loss_weight
        due = time.perf_counter() - self._reported > REPORT_INTERVAL_S
        if rank() == 0 and due and self._step < self.steps:
            self._report(self._progress(torch.stack(list(self._sums.values()))))
            self._reported = time.perf_counter()

    def end_epoch(self) -> None:
        sums = sum_over_ranks(torch.stack(list(self._sums.values()))) / world_size()
        progress = self._progress(sums)
        if not all(math.isfinite(loss) for loss in progress.losses.values()):
            raise FloatingPointError(
                f"stage {progress.stage}, epoch {progress.epoch}: the loss is not finite "
                f"({progress.losses}); lower the learning_rate of {progress.stage}"
            )
        self.history.append(progress)
        self._report(progress)

    def _progress(self, sums: Tensor) -> Progress:
        means = (sums / self._step).tolist()
        steps_taken = (self._epoch - 1) * self._batches.steps_per_epoch + self._step
        return Progress(
            stage=self._settings.stage,
            epoch=self._epoch,
            epochs=self.epochs,
            step=self._step,
            steps=self.steps,
            images=steps_taken * self._batches.batch_size,
            seconds=time.perf_counter() - self._began,
            losses=dict(zip(self._sums, means, strict=True)),
        )
