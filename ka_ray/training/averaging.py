"""Exponential moving average of a network's weights during training."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)
"""Class of the network that is averaged."""


class WeightAverage(AveragedModel, Generic[Network]):
    """Copy of a network whose weights and buffers are an exponential moving average of the network's.

    Such an average over the last steps of training is known as Polyak-Ruppert averaging. The decay rises with
    the number of steps t as ``min(decay, (1 + t) / (10 + t))``, as in TensorFlow's
    ``ExponentialMovingAverage``. Otherwise the average over a few hundred steps with a decay of .999 would
    mostly consist of the first steps. With this rise it covers about the last ninth of the steps so far.

    The running statistics of batch norms are averaged like weights. Integer buffers are copied.

    Args:
        network: Network to average, on the device where it is trained.
        decay: Decay that is approached in long training, in (0, 1).

    Attributes:
        module: The averaged network, in eval mode. Before the first step, a copy of the network.
    """

    module: Network

    def __init__(self, network: Network, decay: float) -> None:
        # Without an argument `device`, the counter stays on the CPU, so that reading it waits for no GPU.
        super().__init__(network, multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self._network = [network]  # in a list, because a module's weights would belong to the average's
        self.eval()

    def update(self) -> None:
        """Add the network's weights of now to the average, after a step."""
        self.update_parameters(self._network[0])

    def _average(self, averaged: Any, current: Any, _: Any) -> None:
        if averaged[0].is_floating_point():
            get_ema_multi_avg_fn(averaging_decay(int(self.n_averaged), self.decay))(averaged, current, _)
        else:
            _copy(averaged, current)


def _copy(averaged: Sequence[Tensor], current: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for target, source in zip(averaged, current, strict=True):
            target.copy_(source)


def averaging_decay(steps: int, decay: float) -> float:
    """Return the weight of the earlier steps in a moving average.

    Args:
        steps: Number of steps that are averaged so far.
        decay: Limit that the weight approaches, in (0, 1).

    Example:
        >>> [round(averaging_decay(steps, 0.99), 3) for steps in (1, 10, 300, 10_000)]
        [0.182, 0.55, 0.971, 0.99]
    """
    return min(decay, (1 + steps) / (10 + steps))
