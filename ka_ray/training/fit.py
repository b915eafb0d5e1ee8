"""The training loop that all stages share, in plain torch: in one process, or data-parallel with DDP."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ka_ray.errors import InputError
from ka_ray.numerics.ranks import copy_buffers_from_rank_zero, rank, sum_over_ranks, world_size
from ka_ray.stopwatch import timed
from ka_ray.training.averaging import WeightAverage
from ka_ray.training.batches import Batches
from ka_ray.training.checkpoint import Stateful, load_training_state, save_training_state
from ka_ray.training.interruption import MiddleOfEpoch, NoticeWatcher
from ka_ray.training.loss_meter import LossMeter
from ka_ray.training.network_call import check_precision, explain_compile_errors
from ka_ray.training.optimizer import build_optimizer, learning_rate_factor, set_learning_rate
from ka_ray.training.progress import Progress, ProgressCallback
from ka_ray.training.settings import FitSettings

__all__ = ["Progress", "ProgressCallback", "fit"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Modules that `batch_norms: frozen` keeps in eval mode."""

EPOCH_SEED_STRIDE = 1_000_003
"""The seed of an epoch is ``run seed * this + epoch``. A large prime keeps the seeds of two runs apart."""


def fit(
    learner: nn.Module,
    batches: Batches,
    settings: FitSettings,
    report: ProgressCallback,
    average: WeightAverage[Any] | None = None,
) -> list[Progress]:
    """Minimise the sum of a learner's losses, in place.

    Args:
        learner: Module that maps a batch to named scalar losses, each a mean over the batch's images.
        batches: Batches to train on. A step of several ranks equals one of one process with the global batch.
        settings: Number of epochs and settings of the optimizer.
        report: Called by every rank at the end of each epoch, when learner and average are the same on all
            ranks, and in between, every two seconds, by rank 0. A resumed run may repeat the last epoch's.
        average: Moving average of the trained network, updated after each step. None: no average.

    Returns:
        One record per epoch, the same on all ranks.

    Raises:
        FloatingPointError: A loss is not finite.
        InputError: The device cannot train in the precision, or torch.compile fails.
    """
    check_precision(settings.stage, settings.amp, batches.device)
    steps, meter = _Steps(learner, batches, settings, average), LossMeter(batches, settings, report)
    _resume(settings.checkpoint, learner, steps, meter)
    model, watcher = _over_ranks(learner, settings), NoticeWatcher()
    for epoch in range(len(meter.history) + 1, meter.epochs + 1):
        meter.start_epoch(epoch)
        _set_training_mode(learner, settings)
        torch.manual_seed(batches.seed * EPOCH_SEED_STRIDE + epoch)  # dropout is the same after a resume
        _take_steps(model, batches.epoch(epoch), steps, meter, watcher)
        steps.synchronise()
        meter.end_epoch()
        if epoch < meter.epochs:
            _save(steps, meter)
    learner.eval()
    return meter.history


class _Steps:
    """Takes optimizer steps, and has everything that a checkpoint must hold."""

    def __init__(
        self,
        learner: nn.Module,
        batches: Batches,
        settings: FitSettings,
        average: WeightAverage[Any] | None,
    ) -> None:
        self._learner, self.settings, self._average = learner, settings, average
        self._loss_weight, self._total_steps = batches.loss_weight, settings.steps(batches)
        self._optimizer = build_optimizer(learner, settings)
        self._scaler = torch.amp.GradScaler(batches.device.type, enabled=settings.amp == "fp16")
        self.taken = 0
        self.parts: dict[str, Stateful] = {"learner": learner, "optimizer": self._optimizer}
        self.parts |= {} if average is None else {"average": average}
        self.parts |= {"scaler": self._scaler} if self._scaler.is_enabled() else {}

    def take(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take a step, and return the losses before it. The model is the learner, or its DDP."""
        settings = self.settings
        factor = learning_rate_factor(self.taken, self._total_steps, settings.warmup)
        set_learning_rate(self._optimizer, settings.learning_rate * factor)
        with explain_compile_errors(settings.stage):
            losses: dict[str, Tensor] = model(batch)
            self._optimizer.zero_grad(set_to_none=True)
            # DDP averages gradients over ranks, so the loss of a rank with more images gets a larger weight.
            loss = torch.stack(list(losses.values())).sum() * self._loss_weight
            self._scaler.scale(loss).backward()
        if settings.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            # DDP has averaged the gradients by now, so all ranks find the norm of the global batch.
            nn.utils.clip_grad_norm_(self._learner.parameters(), settings.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update()
        self.taken += 1
        return losses

    def synchronise(self) -> None:
        """Make buffers, such as running statistics, equal on all ranks. DDP does so only before a step."""
        copy_buffers_from_rank_zero(self._learner)
        if self._average is not None:
            copy_buffers_from_rank_zero(self._average.module)


def _take_steps(
    model: nn.Module,
    batches: Iterator[dict[str, Tensor]],
    steps: _Steps,
    meter: LossMeter,
    watcher: NoticeWatcher,
) -> None:
    """Take the steps of an epoch, or the rest of them if training was saved in the middle of it."""
    meter.go_to_middle()
    for batch in timed(islice(batches, meter.step, meter.steps), meter.add_wait):
        meter.add(steps.take(model, batch))
        if watcher.step_ended():
            _save(steps, meter, in_epoch=True)


def _save(steps: _Steps, meter: LossMeter, in_epoch: bool = False) -> None:
    checkpoint, middle = steps.settings.checkpoint, None
    if checkpoint is None:
        return
    if in_epoch:
        steps.synchronise()
        middle = MiddleOfEpoch.now(meter.step, meter.sums)
    if rank() == 0:
        save_training_state(checkpoint, steps.parts, steps.taken, meter.history, middle)


def _resume(checkpoint: Path | None, learner: nn.Module, steps: _Steps, meter: LossMeter) -> None:
    """Restore the state after the last saved epoch, if one exists."""
    records = list[dict[str, Any]]()
    if checkpoint is not None and checkpoint.exists():
        steps.taken, records, meter.middle = load_training_state(checkpoint, steps.parts)
    meter.resume([Progress(**record) for record in records])
    # Ranks that resume from different epochs would wait for each other forever.
    total = sum_over_ranks(torch.tensor([float(steps.taken)], device=next(learner.parameters()).device))
    if int(total) != steps.taken * world_size():
        raise InputError(
            f"checkpoint {checkpoint}: the workers see different files; set `output` to a folder that all "
            "nodes share, or to a URI"
        )


def _over_ranks(learner: nn.Module, settings: FitSettings) -> nn.Module:
    if world_size() == 1:
        return learner
    return DistributedDataParallel(learner, find_unused_parameters=settings.unused_parameters)


def _set_training_mode(learner: nn.Module, settings: FitSettings) -> None:
    """Set the learner to training mode, in each epoch: a callback may have evaluated it in between."""
    learner.train()
    if settings.batch_norms == "frozen":
        for module in learner.modules():
            if isinstance(module, BATCH_NORMS):
                module.eval()
