"""Layer-wise learning: every layer of the student at once, each fed the code before it.

Shapes: B images, S stacked channels, C code channels, *space height and width, K classes.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import AutoEncoder
from ka_ray.student.adapter import Adapter, fold
from ka_ray.student.network import SCORES, Student


class LayerwiseLearner(nn.Module):
    """``code_hat[l] = layer_l(pool(act(adapter[l-1](code[l-1]))))`` with loss ``1/2 ||code_hat - code||^2``.

    Layer ``l`` is fed the code of tap ``l-1``, not the student's own output (the first layer: the image), so
    no gradient crosses a tap and one backward pass of the summed losses learns all layers independently
    (Shen et al., AAAI 2019). The last layer's target are the amalgamated scores.

    Args:
        student: Its stages are learned in place.
        encoders: tap -> trained auto-encoder; frozen here.
    """

    def __init__(self, student: Student, encoders: nn.ModuleDict) -> None:
        super().__init__()
        self.student = student
        self.encoders = encoders.requires_grad_(False)
        self.adapters = nn.ModuleDict({tap: Adapter(c) for tap, c in student.spec.widths.items()})

    def pairs(self, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Give, for every stage, what it computes and what it should.

        Args:
            batch: ``image [B, 3, H, W]``, ``scores [B, K]`` and each tap's stacked ``[B, S, *space]``.

        Returns:
            tap -> (estimate, target), both ``[B, C, *space]``; ``scores`` -> both ``[B, K]``.
        """
        pairs = {}
        features = self.student.preprocess(batch["image"])
        for tap, stage in self.student.stages.items():
            estimate = stage(features)
            if tap == SCORES:
                pairs[tap] = (estimate, batch["scores"])
            else:
                with torch.no_grad():
                    code = cast(AutoEncoder, self.encoders[tap]).encode(batch[tap])
                pairs[tap] = (estimate, code)
                features = self.adapters[tap](code)
        return pairs

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of every stage, a value."""
        pairs = self.pairs(batch)
        return {tap: 0.5 * (estimate - target).square().mean() for tap, (estimate, target) in pairs.items()}

    @torch.no_grad()
    def squared_errors(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give, for every stage, sums over the batch from which the relative error is made.

        Returns:
            tap -> ``[2 + 2 C]`` float64: squared error, count a channel, sums and sums of squares of the
            target's channels.
        """
        sums = {}
        for tap, (estimate, target) in self.pairs(batch).items():
            error = (estimate - target).double().square().sum()
            flat = target.double().movedim(1, -1).flatten(0, -2)
            head = torch.stack([error, error.new_tensor(len(flat))])
            sums[tap] = torch.cat([head, flat.sum(0), flat.square().sum(0)])
        return sums


def relative_error(sums: Tensor) -> float:
    """Compute ``sum ||estimate - target||^2 / sum ||target - mean||^2`` from :meth:`squared_errors`."""
    error, count = float(sums[0]), float(sums[1])
    first, second = sums[2:].chunk(2)
    return error / float((second - first.square() / count).sum().clamp_min(1e-30))


def fold_adapters(learner: LayerwiseLearner) -> Student:
    """Fold every adapter into the last layer of its stage; the student carries no extra layer.

    Returns:
        The learner's student, which now gives what stages and adapters in turn gave.
    """
    for tap, adapter in learner.adapters.items():
        last = cast(nn.Sequential, learner.student.stages[tap])[-1]
        fold(cast(Adapter, adapter), cast("nn.Conv2d | nn.Linear", last))
    return learner.student
