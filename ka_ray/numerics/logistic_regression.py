"""Multinomial logistic regression with a penalty on the weights, for few or many samples.

Shapes: n samples, D inputs, N outcomes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STEPS, GRADIENT_TOLERANCE, CHANGE_TOLERANCE = 200, 1e-6, 1e-10
"""When L-BFGS stops: number of iterations, largest entry of the gradient, change of loss and weights."""


@dataclass(frozen=True)
class LinearLogits:
    """Logits that are linear in the inputs.

    Attributes:
        weight: `[D, N]`.
        bias: `[N]`.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the logits `[n, N]` of inputs `[n, D]`."""
        return inputs @ self.weight + self.bias


def fit_logistic_regression(
    inputs: Tensor,
    targets: Tensor,
    penalty: float,
    *,
    offset: Tensor | None = None,
    sample_weights: Tensor | None = None,
) -> LinearLogits:
    """Minimise ``mean(-sum_k targets_k log softmax(inputs W + b + offset)_k) + penalty / 2 ||W||^2``.

    The optimal W is a sum of inputs, so with fewer samples than inputs only its coordinates in the span of
    the samples are unknown: 60 samples with 2,560 inputs are solved as 60 x 60 (the representer theorem).

    Args:
        inputs: `[n, D]`, in float32 or float64. Standardise them: all share one penalty.
        targets: `[n, N]`, probabilities of the outcomes.
        penalty: Of the weights, above 0; the bias has none.
        offset: `[n, N]`, logits that are there before anything is learned; None: 0.
        sample_weights: `[n]`, not all 0; only their ratios count. None: equal.

    Returns:
        The weights, without the offset, in the dtype of the inputs.
    """
    samples, basis = inputs, None
    if len(inputs) < inputs.shape[1]:
        basis, coordinates = torch.linalg.qr(inputs.T)
        samples = coordinates.T
    targets = targets.to(samples)
    shift = torch.zeros_like(targets) if offset is None else offset.to(samples)
    shares = samples.new_ones(len(samples)) if sample_weights is None else sample_weights.to(samples)
    weighted = targets * (shares / shares.sum())[:, None]
    weight = samples.new_zeros(samples.shape[1], targets.shape[1], requires_grad=True)
    bias = samples.new_zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_STEPS,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=CHANGE_TOLERANCE,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_probabilities = torch.log_softmax(samples @ weight + bias + shift, dim=1)
        loss = -(weighted * log_probabilities).sum() + penalty / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    solved = weight.detach()
    return LinearLogits(solved if basis is None else basis @ solved, bias.detach())
