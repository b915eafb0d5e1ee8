"""Estimate which share of unlabelled images belongs to whom.

Shapes: n images, N owners, nobody among them if a gate knows images of nobody.
"""

import torch
from torch import Tensor

MAX_STEPS, TOLERANCE = 500, 1e-8
"""Maximum number of iterations, and the change of the shares below which they stop."""


def estimate_shares(probabilities: Tensor, assumed: Tensor | None = None) -> Tensor:
    """Estimate the owners' shares in a pool of images, which a gate's mean would pull towards equal ones.

    The EM of Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori
    Probabilities" (2002): it finds the shares that make the images most probable, under the assumption that
    the gate's probabilities are right for the shares that it was learned with.

    Args:
        probabilities: `[n, N]`, p(owner | image) of a gate for the images.
        assumed: `[N]`, shares that the gate was learned with; None: equal ones, as
            :func:`ka_ray.gates.fit.fit_gate` weighs owners.

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
