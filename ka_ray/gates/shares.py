"""Estimate which share of unlabelled images belongs to whom.

Shapes: n images, N owners, nobody among them if a gate knows images of nobody.
"""

import torch
from torch import Tensor

MAX_STEPS, TOLERANCE = 500, 1e-8
"""Maximum number of iterations, and the change of the shares below which they stop."""

STEP = 0.7
"""Part of the way that iterative scaling goes; all of it can overshoot for owners that compete."""


def match_shares(logits: Tensor, shares: Tensor) -> Tensor:
    """Find the shift `[N]` with which the mean of ``softmax(logits + shift)`` over the images is the shares.

    Iterative scaling: each step multiplies every owner's odds by what its mean is short of its share.

    Args:
        logits: `[n, N]`.
        shares: `[N]`, above 0; only their ratios count.
    """
    target = (shares.double() / shares.double().sum()).log()
    given, shift = logits.double(), torch.zeros_like(target)
    for _ in range(MAX_STEPS):
        change = target - (given + shift).log_softmax(dim=1).exp().mean(dim=0).clamp_min(1e-300).log()
        shift = shift + STEP * change
        if float(change.abs().max()) < TOLERANCE:
            break
    return (shift - shift.mean()).to(logits.dtype)


def estimate_shares(probabilities: Tensor, assumed: Tensor | None = None) -> Tensor:
    """Estimate the owners' shares in a pool of images, which a gate's mean would pull towards equal ones.

    The EM of Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities" (2002): it finds the shares that make the images most probable, under the assumption that
    the gate's probabilities are right for the shares that it was learned with.

    Args:
        probabilities: `[n, N]`, p(owner | image) of a gate for the images.
        assumed: `[N]`, shares that the gate was learned with; None: equal ones, as
            :meth:`ka_ray.gates.fit.GateProblem.fit` weighs owners.

    Returns:
        `[N]` in float64, adding up to 1.
    """
    given = probabilities.double()
    prior = torch.full_like(given[0], 1 / given.shape[1]) if assumed is None else assumed.to(given)
    likelihoods, shares = given / prior, prior
    for _ in range(MAX_STEPS):
        posterior = likelihoods * shares
        updated = (posterior / posterior.sum(dim=1, keepdim=True)).mean(dim=0)
        change, shares = float((updated - shares).abs().max()), updated
        if change < TOLERANCE:
            break
    return shares
