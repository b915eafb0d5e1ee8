"""Layer-wise learning: train all layers of the student at once, each from the code before it to its own code.

Shapes: B images, S stacked channels, C code channels, ``*space`` height and width, K classes of all teachers
together, K_t classes of teacher t.
"""

from collections.abc import Collection, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.features.stack import SCORES
from ka_ray.numerics.relative_error import squared_error_sums
from ka_ray.student.adapter import Adapter
from ka_ray.student.fold import fold_adapter
from ka_ray.student.network import Student


class LayerwiseLearner(nn.Module):
    """Learner of all layers of a student, each from the code before it (Shen et al., AAAI 2019).

    Layer l computes ``code_hat[l] = layer_l(pool(act(adapter[l-1](code[l-1]))))``, with the loss
    ``1/2 ||code_hat[l] - code[l]||^2``. Its input is the code of tap l-1 instead of the student's own
    features (but see :meth:`_adapt` for class tokens); the first layer's input is the image. So no gradient
    crosses a tap, and one backward pass of the summed losses trains all layers independently of each other.
    The target of the last layer is the teachers' scores, merged by the rule of the label sets.

    Args:
        student: Student whose stages are trained in place. Each stage is the part between two taps.
        encoders: Tap name -> trained :class:`ka_ray.amalgamation.Amalgamation`; it is frozen here.

    Attributes:
        adapters: Tap name -> :class:`ka_ray.student.adapter.Adapter` from the tap's code to the next stage.
        trained_taps: Names of the stages to train; each is named after the tap at its end.
    """

    def __init__(self, student: Student, encoders: nn.ModuleDict) -> None:
        super().__init__()
        self.student = student
        self.encoders = encoders.requires_grad_(False)
        self._label_sets = student.spec.unified_label_sets
        self.adapters = nn.ModuleDict({tap: Adapter(c) for tap, c in student.spec.widths.items()})
        self.trained_taps = list(student.stages)

    def exclude_stages(self, stages: Collection[str]) -> None:
        """Exclude stages from training, and freeze the adapters that compute their inputs."""
        self.trained_taps = [tap for tap in self.trained_taps if tap not in stages]
        # An adapter is named after the tap whose code it adapts, i.e. the tap before the stage that it feeds.
        for previous_tap, (tap, stage) in zip(
            [None, *self.adapters], self.student.stages.items(), strict=True
        ):
            if tap in stages:
                stage.requires_grad_(False)
                if previous_tap is not None:
                    self.adapters[previous_tap].requires_grad_(False)

    def estimates_and_targets(self, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, per trained stage, the output and the target.

        Args:
            batch: Columns ``image [B, 3, H, W]``, ``scores [B, sum of K_t]`` (all teachers' scores side by
                side) and, per tap, the stacked features ``[B, S, *space]``.

        Returns:
            Tap name -> (output, code), both ``[B, C, *space]``. ``scores`` -> (student's scores ``[B, K]``,
            teachers' scores ``[B, sum of K_t]``).
        """
        pairs = {}
        stage_input = self.student.preprocess(batch["image"])
        for tap, stage in self.student.stages.items():
            if tap == SCORES:
                if tap in self.trained_taps:
                    # Not merged here, because the rule `conditional` compares with each teacher's own scores.
                    pairs[tap] = (stage(stage_input), batch[SCORES])
                continue
            with torch.no_grad():
                target = cast(Amalgamation, self.encoders[tap]).encode(batch[tap])
            layout, rest = self.student.layouts[tap], None
            if tap in self.trained_taps or layout.has_rest:
                estimate, rest = layout.split(stage(stage_input))
                if tap in self.trained_taps:
                    pairs[tap] = (estimate, target)
            stage_input = self._adapt(tap, target, rest)
        return pairs

    def _adapt(self, tap: str, code: Tensor, rest: Tensor | None) -> Tensor:
        """Return the input of the stage after a tap: the adapted code, in the layout of the network itself.

        Tokens that are not among the features, such as a class token, have no code. They are the student's
        own, without a gradient, so that none crosses the tap. The adapter acts on them, too, because it is
        folded into layers that compute all tokens.

        Args:
            tap: Name of the tap.
            code: Code of the tap, ``[B, C, *space]``.
            rest: The other tokens in the output of the stage before, ``[B, N', C]``; None if there are none.
        """
        adapter = cast(Adapter, self.adapters[tap])
        adapted_rest = None if rest is None else adapter.linear(rest.detach())
        return self.student.layouts[tap].join(adapter(code), adapted_rest)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each trained stage, averaged over all values of its output."""
        return {
            tap: self._label_sets.loss(estimate, target, half_mse)
            if tap == SCORES
            else half_mse(estimate, target)
            for tap, (estimate, target) in self.estimates_and_targets(batch).items()
        }

    @torch.no_grad()
    def error_sums(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return, per trained stage, the sums over the batch that its relative error is computed from.

        See :func:`ka_ray.numerics.relative_error.squared_error_sums`; the sums of several batches and ranks
        can be added up.

        Args:
            batch: Columns as in :meth:`estimates_and_targets`.

        Returns:
            Tap name -> ``[2 + 2 C]``, float64: the squared error, the number of values per channel, and per
            channel of the target the sum and the sum of squares.
        """
        sums = {}
        for tap, (estimate, target) in self.estimates_and_targets(batch).items():
            if tap == SCORES:
                target = self._label_sets.amalgamate(target)
                if self._label_sets.rule == "conditional":
                    # This rule's loss ignores a constant added to all scores of an image; so must the error.
                    estimate, target = (t - t.mean(dim=1, keepdim=True) for t in (estimate, target))
            # Every position of every image is one sample of C channels.
            estimates, targets = (t.movedim(1, -1).flatten(0, -2) for t in (estimate, target))
            sums[tap] = squared_error_sums(estimates, targets)
        return sums


def half_mse(estimate: Tensor, target: Tensor) -> Tensor:
    """Compute ``1/2 (estimate - target)^2``, averaged over all values.

    Args:
        estimate: Output of a network, of any shape.
        target: Target of the same shape.
    """
    return 0.5 * (estimate - target).square().mean()


def fold_adapters(learner: LayerwiseLearner) -> Student:
    """Fold each adapter into the stage before it, so that the student gets no additional layers.

    Returns:
        The learner's student, in eval mode. It computes the same as the sequence of stages and adapters did.
    """
    learner.eval()
    for tap, adapter in learner.adapters.items():
        fold_adapter(cast(Adapter, adapter), learner.student.stages[tap])
    return learner.student
