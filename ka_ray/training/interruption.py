"""Save in the middle of an epoch when this worker's machine will be taken away, as spot machines are.

Training is saved after each epoch, and an epoch can take longer than the notice of a provider, which is about
two minutes. What is saved in the middle of an epoch is enough to go on there as if nothing had happened.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ka_ray.numerics.ranks import sum_over_ranks, world_size

CHECK_S = 5.0
"""Seconds between two checks for a notice; the check waits for all ranks."""

PAUSE_S = 60.0
"""Seconds without another check after a notice: until the machine is gone, the notice stays."""

MAX_GROWTH = 10
"""Largest ratio of the steps between two checks to those before: a few steps may have been very fast."""

_ask: Callable[[], bool] | None = None


def ask_for_notice(ask: Callable[[], bool] | None) -> None:
    """Set how this process asks whether a machine of its group will be taken away.

    Args:
        ask: Returns the same on all ranks, which call it together. None: there is never a notice.
    """
    global _ask
    _ask = ask


class NoticeWatcher:
    """Asks for a notice every few seconds.

    All ranks must ask at the same steps, but their clocks differ, and to agree after every step would make
    each step wait for the slowest rank. So at each check they agree on the step of the next one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._between = self._left = 1

    def step_ended(self) -> bool:
        """Return whether training should be saved now; all ranks call this after every step."""
        if _ask is None:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        told = _ask()
        now = self._clock()
        seconds = torch.tensor((now - self._began) / self._between, device=_device())
        per_step = max(1e-6, float(sum_over_ranks(seconds)) / world_size())
        steps = max(1, int((PAUSE_S if told else CHECK_S) / per_step))
        self._between = self._left = min(MAX_GROWTH * self._between, steps)
        self._began = now
        return told


def _device() -> str:
    """Return the device of tensors that ranks exchange."""
    import torch.distributed as dist

    return "cuda" if dist.is_initialized() and dist.get_backend() == "nccl" else "cpu"


@dataclass(frozen=True)
class MiddleOfEpoch:
    """What training needs to go on in the middle of an epoch.

    Attributes:
        step: Number of steps taken in this epoch.
        sums: Name -> sum of a loss over these steps, as the mean over ranks.
        random: State of torch's random numbers on the CPU, for dropout.
        random_on_gpu: The same on the GPU; None without one.
    """

    step: int
    sums: dict[str, Tensor]
    random: Tensor
    random_on_gpu: Tensor | None

    @classmethod
    def now(cls, step: int, sums: dict[str, Tensor]) -> "MiddleOfEpoch":
        """Describe the current step; all ranks call this together.

        Args:
            step: Number of steps taken in this epoch.
            sums: Name -> sum of a loss over this rank's steps.
        """
        stacked = sum_over_ranks(torch.stack(list(sums.values()))) / world_size()
        on_gpu = stacked.device.type == "cuda"
        return cls(
            step,
            dict(zip(sums, stacked.cpu(), strict=True)),
            torch.get_rng_state(),
            torch.cuda.get_rng_state() if on_gpu else None,
        )

    @classmethod
    def load(cls, state: dict[str, Any] | None) -> "MiddleOfEpoch | None":
        """Return what :attr:`state` was of; None for training that was saved after an epoch."""
        return None if state is None else cls(**state)

    @property
    def state(self) -> dict[str, Any]:
        """All fields, for a file that holds only tensors and numbers."""
        return dict(vars(self))

    def restore_random(self) -> None:
        """Set torch's random numbers to their state then."""
        torch.set_rng_state(self.random)
        if self.random_on_gpu is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(self.random_on_gpu)
