"""Multinomial logistic regression with a penalty on the weights, for few or many samples.

Shapes: n samples, D inputs, N outcomes, C classes (N, if every outcome is one class).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STEPS, GRADIENT_TOLERANCE, CHANGE_TOLERANCE = 200, 1e-6, 1e-10
"""When L-BFGS stops: number of iterations, largest entry of the gradient, change of loss and weights."""


SCALE_PENALTY = 0.01
"""Penalty of the squared logarithm of a learned scale of the offset."""


@dataclass(frozen=True)
class LinearLogits:
    """Logits that are linear in the inputs, beside an offset.

    Attributes:
        weight: `[D, C]`.
        bias: `[C]`.
        scale: `[N]`, factor of the offset of each outcome's classes; 1 where none is learned.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits `[n, C]` of inputs `[n, D]`, without the offset."""
        return inputs @ self.weight + self.bias

    def pool(self, inputs: Tensor, offset: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the logits `[n, N]` of outcomes, for an offset `[n, C]` and numbers of classes."""
        return pool_logits(self(inputs) + offset * repeat_per_class(self.scale, sizes), sizes)


def pool_logits(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the logits `[n, N]` of outcomes, each made of the next so many of the classes, `[n, C]`."""
    return torch.stack([part.logsumexp(dim=1) for part in logits.split(list(sizes), dim=1)], dim=1)


def repeat_per_class(values: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return what outcomes have, `[..., N]`, for each of their classes, `[..., C]`."""
    return values.repeat_interleave(torch.tensor(list(sizes), device=values.device), dim=-1)


def fit_logistic_regression(
    inputs: Tensor,
    targets: Tensor,
    penalty: float,
    *,
    offset: Tensor | None = None,
    sample_weights: Tensor | None = None,
    sizes: Sequence[int] | None = None,
    learn_scale: bool = False,
) -> LinearLogits:
    """Minimise ``mean(-sum_k targets_k log p_k) + penalty / 2 ||W||^2``.

    p is the softmax of ``pool_logits(inputs W + b + scale * offset)``. Where outcomes have several classes,
    it is not known which class it was: the loss is not convex, and the solution is the one found from weights
    of 0. The optimal W is a sum of inputs, so with fewer samples than inputs only its coordinates in their
    span are unknown: 60 samples with 2,560 inputs are solved as 60 x 60 (the representer theorem).

    Args:
        inputs: `[n, D]`, in float32 or float64. Standardise them: all share one penalty.
        targets: `[n, N]`, probabilities of the outcomes.
        penalty: Of the weights, above 0; the bias has none.
        offset: `[n, C]`, logits that are there before anything is learned; None: 0.
        sample_weights: `[n]`, not all 0; only their ratios count. None: equal.
        sizes: Number of classes of each outcome; their sum is C. None: one each.
        learn_scale: Whether a scale of the offset is learned, with :data:`SCALE_PENALTY`; else it is 1.

    Returns:
        The weights, without the offset, in the dtype of the inputs.
    """
    samples, basis = inputs, None
    if len(inputs) < inputs.shape[1]:
        basis, coordinates = torch.linalg.qr(inputs.T)
        samples = coordinates.T
    shares = samples.new_ones(len(samples)) if sample_weights is None else sample_weights.to(samples)
    weighted = targets.to(samples) * (shares / shares.sum())[:, None]
    shift = torch.zeros_like(samples[:, :1]) if offset is None else offset.to(samples)
    sizes = [1] * targets.shape[1] if sizes is None else sizes
    solved = _solve(samples, weighted, penalty, shift, sizes, learn_scale)
    return solved if basis is None else LinearLogits(basis @ solved.weight, solved.bias, solved.scale)


def _solve(
    samples: Tensor, weighted: Tensor, penalty: float, shift: Tensor, sizes: Sequence[int], learn_scale: bool
) -> LinearLogits:
    """Minimise the loss for targets that are multiplied by the shares of their samples."""
    shapes = ((samples.shape[1], sum(sizes)), (sum(sizes),), (len(sizes),))
    weight, bias, log_scale = (samples.new_zeros(shape) for shape in shapes)

    def loss() -> Tensor:
        logits = LinearLogits(weight, bias, log_scale.exp()).pool(samples, shift, sizes)
        penalties = penalty * weight.square().sum() + SCALE_PENALTY * log_scale.square().sum()
        return penalties / 2 - (weighted * logits.log_softmax(dim=1)).sum()

    _minimise(loss, [weight, bias, *([log_scale] if learn_scale else [])])
    return LinearLogits(weight.detach(), bias.detach(), log_scale.detach().exp())


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Minimise a smooth loss over tensors, in place, by L-BFGS over all samples at once."""
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=MAX_STEPS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=CHANGE_TOLERANCE,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
