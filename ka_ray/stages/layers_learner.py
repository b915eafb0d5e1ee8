"""Layer-wise learning: every layer of the student at once, each fed the code before it.

Shapes: B images, S stacked channels, C code channels, *space height and width, K classes.
"""

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.features.stack import SCORES
from ka_ray.student.adapter import Adapter
from ka_ray.student.fold import fold
from ka_ray.student.network import Student


class LayerwiseLearner(nn.Module):
    """``code_hat[l] = layer_l(pool(act(adapter[l-1](code[l-1]))))`` with loss ``1/2 ||code_hat - code||^2``.

    Layer ``l`` is fed the code of tap ``l-1``, not the student's own output (the first layer: the image), so
    no gradient crosses a tap and one backward pass of the summed losses learns all layers independently
    (Shen et al., AAAI 2019). The last layer's target are the teachers' scores, by the rule of the label sets.

    Args:
        student: Its stages are learned in place.
        encoders: tap -> trained :class:`ka_ray.amalgamation.Amalgamation`; frozen here.
    """

    def __init__(self, student: Student, encoders: nn.ModuleDict) -> None:
        super().__init__()
        self.student = student
        self.encoders = encoders.requires_grad_(False)
        self._label_sets = student.spec.unified_label_sets
        self.adapters = nn.ModuleDict({tap: Adapter(c) for tap, c in student.spec.widths.items()})
        self.learned = list(student.stages)

    def leave(self, stages: Collection[str]) -> None:
        """Leave stages as they are, and do not change what they get: the adapters in front of them."""
        self.learned = [tap for tap in self.learned if tap not in stages]
        for before, (tap, stage) in zip([None, *self.adapters], self.student.stages.items(), strict=True):
            if tap in stages:
                stage.requires_grad_(False)
                if before is not None:
                    self.adapters[before].requires_grad_(False)

    def pairs(self, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Give, for every stage that is learned, what it computes and what it should.

        Args:
            batch: ``image [B, 3, H, W]``, ``scores [B, sum of K_t]`` (all teachers' own, side by side) and
                each tap's stacked ``[B, S, *space]``.

        Returns:
            tap -> (estimate, code), both ``[B, C, *space]``; ``scores`` -> (estimate ``[B, K]``, the
            teachers' own).
        """
        pairs = {}
        features = self.student.preprocess(batch["image"])
        for tap, stage in self.student.stages.items():
            given = features
            if tap == SCORES:
                target = batch[SCORES]
            else:
                with torch.no_grad():
                    target = cast(Amalgamation, self.encoders[tap]).encode(batch[tap])
                features = self.adapters[tap](target)
            if tap in self.learned:
                pairs[tap] = (stage(given), target)
        return pairs

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give the loss of every stage that is learned, a value."""
        return {
            tap: self._label_sets.loss(estimate, target, half_mse)
            if tap == SCORES
            else half_mse(estimate, target)
            for tap, (estimate, target) in self.pairs(batch).items()
        }

    @torch.no_grad()
    def squared_errors(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give, for every stage that is learned, sums over the batch from which the relative error is made.

        Returns:
            tap -> ``[2 + 2 C]`` float64: squared error, count a channel, sums and sums of squares of the
            target's channels.
        """
        sums = {}
        for tap, (estimate, target) in self.pairs(batch).items():
            if tap == SCORES:
                target = self._label_sets.amalgamate(target)
                if self._label_sets.rule == "conditional":  # says nothing of a constant added to all scores
                    estimate, target = (t - t.mean(dim=1, keepdim=True) for t in (estimate, target))
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


def half_mse(estimate: Tensor, target: Tensor) -> Tensor:
    """Compute ``1/2 ||estimate - target||^2``, a value."""
    return 0.5 * (estimate - target).square().mean()


def fold_adapters(learner: LayerwiseLearner) -> Student:
    """Fold every adapter into its stage; the student carries no layer that it had not before.

    Returns:
        The learner's student, in eval mode, which now gives what stages and adapters in turn gave.
    """
    learner.eval()
    for tap, adapter in learner.adapters.items():
        fold(cast(Adapter, adapter), learner.student.stages[tap])
    return learner.student
