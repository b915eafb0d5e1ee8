"""Unify what each teacher says about its own classes into one distribution over all classes.

Shapes: B images, N teachers, K classes of the union, S classes that more than one teacher knows.
"""

import torch
from torch import Tensor

MIN_PROBABILITY = 1e-12
"""Lower limit of a teacher's probability for each class that it knows: with a 0 the best q may not exist."""

MAX_STEPS, TOLERANCE = 300, 1e-10
"""Maximum number of iterations, and the change of the weights' logarithms below which they stop."""


@torch.no_grad()
def unify_distributions(conditionals: Tensor, known: Tensor) -> Tensor:
    """Find the distribution q over all classes that agrees best with every teacher's own distribution p_t.

    q minimises ``sum_t KL(p_t || q restricted to Y_t and renormalised)``, Y_t the classes of teacher t.
    Setting the gradient to zero gives ``q(y) = sum_t p_t(y) / sum_{t knows y} w_t`` with ``w_t = 1 /
    q(Y_t)``, so only the N weights w_t are unknown. Updating them by this equation (the MM algorithm of
    Hunter, 2004) can take more than 10^4 steps when teachers are sure of a class that others do not know.

    The same equations, multiplied by w_t, say that w is the stationary distribution of a Markov chain over
    the teachers with rates ``t -> u: sum_{y known to both} p_u(y) / sum_{v knows y} w_v``. Solving the chain
    and updating its rates in turn (I-LSR: Maystre and Grossglauser, NeurIPS 2015) takes tens of steps, and
    one step if the overlaps form no loop.

    Args:
        conditionals: `[B, N, K]` in float64, the p_t; 0 for classes that teacher t does not know.
        known: `[N, K]` booleans, which teacher knows which class. Shared classes must connect all teachers,
            directly or through others.

    Returns:
        `[B, K]`, log q.
    """
    p = conditionals.clamp_min(MIN_PROBABILITY) * known
    p = p / p.sum(dim=2, keepdim=True)
    knows = known.to(p.dtype)
    # Only classes that several teachers know give transitions between teachers.
    shared = known.sum(dim=0) > 1
    p_shared, knows_shared = p[:, :, shared].mT, knows[:, shared]  # [B, S, N], [N, S]
    weights = p.new_ones(p.shape[:2])
    for _ in range(MAX_STEPS):
        previous = weights
        # The argument is the matrix of the rates t -> u above, `[B, N, N]`.
        weights = stationary_distribution((knows_shared / (previous @ knows_shared)[:, None]) @ p_shared)
        # The weights are defined up to a common factor, which the spread of their changes ignores.
        change = (weights / previous).log()
        if bool((change.amax(dim=1) - change.amin(dim=1) < TOLERANCE).all()):
            break
    return (p.sum(dim=1) / (weights @ knows)).log().log_softmax(dim=1)


def stationary_distribution(rates: Tensor) -> Tensor:
    """Compute the stationary distributions of Markov chains by the GTH algorithm.

    It subtracts nothing, so tiny rates keep all their digits (Grassmann, Taksar and Heyman, 1985).

    Args:
        rates: `[B, N, N]`, transition rates from row to column; the diagonal is ignored.

    Returns:
        `[B, N]`, each row sums to 1.
    """
    rates = rates.clone()
    for last in range(rates.shape[1] - 1, 0, -1):
        # Remove the last state: each transition into it goes on to where the chain moves from there.
        rates[:, :last, last] /= rates[:, last, :last].sum(dim=1, keepdim=True)
        rates[:, :last, :last] += rates[:, :last, last, None] * rates[:, last, None, :last]
    weights = torch.ones_like(rates[:, 0])
    for state in range(1, rates.shape[1]):
        # Add the states again, one after the other: the weight of a state is the flow into it.
        weights[:, state] = (weights[:, :state] * rates[:, :state, state]).sum(dim=1)
    return weights / weights.sum(dim=1, keepdim=True)
