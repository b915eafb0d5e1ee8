"""One distribution over all classes from what each teacher says about its own.

Shapes: B images, N teachers, K classes of the union, S classes known to more than one teacher.
"""

import torch
from torch import Tensor

LEAST_PROBABILITY = 1e-12
"""What a teacher gives every class that it knows, at least: with 0 the best q may not exist."""

MAX_STEPS, ENOUGH = 300, 1e-10
"""Steps at most, and the change of the weights (of their logarithms) that ends them."""


@torch.no_grad()
def unify(conditionals: Tensor, known: Tensor) -> Tensor:
    """Find the q over all classes that agrees best with what each teacher says about its own.

    q minimises ``sum_t KL(p_t || q restricted to Y_t and renormalised)``. Its zero gradient reads
    ``q(y) = sum_t p_t(y) / sum_{t knows y} w_t`` with ``w_t = 1 / q(Y_t)``, so only the N weights are
    unknown. Updating them in place (the MM of Hunter, 2004) can take 10^4 steps and more where teachers
    are sure of a class that others do not know. The same equations, multiplied by w_t, say that w is
    the stationary distribution of a Markov chain over the teachers with rates
    ``t -> u: sum_{y known to both} p_u(y) / sum_{v knows y} w_v``. Solving the chain and updating its
    rates in turn (I-LSR: Maystre and Grossglauser, NeurIPS 2015) takes tens of steps, and a single one
    where the overlaps form no loop.

    Args:
        conditionals: The p_t, `[B, N, K]` in float64; 0 where teacher t does not know the class.
        known: Which teacher knows which class, `[N, K]`; connected through shared classes.

    Returns:
        log q, `[B, K]`.
    """
    p = conditionals.clamp_min(LEAST_PROBABILITY) * known
    p = p / p.sum(dim=2, keepdim=True)
    knows = known.to(p.dtype)
    shared = known.sum(dim=0) > 1
    p_shared, knows_shared = p[:, :, shared].mT, knows[:, shared]  # [B, S, N], [N, S]
    weights = p.new_ones(p.shape[:2])
    for _ in range(MAX_STEPS):
        before = weights
        weights = stationary((knows_shared / (before @ knows_shared)[:, None]) @ p_shared)
        change = (weights / before).log()
        if bool((change.amax(dim=1) - change.amin(dim=1) < ENOUGH).all()):
            break
    return (p.sum(dim=1) / (weights @ knows)).log().log_softmax(dim=1)


def stationary(rates: Tensor) -> Tensor:
    """Find the stationary distributions `[B, N]` of Markov chains with rates `[B, N, N]`, from row to column.

    Nothing is ever subtracted, so tiny rates keep all their digits (Grassmann, Taksar and Heyman, 1985).
    The diagonal does not matter.
    """
    rates = rates.clone()
    for last in range(rates.shape[1] - 1, 0, -1):  # take the last state out: lead its visits on
        rates[:, :last, last] /= rates[:, last, :last].sum(dim=1, keepdim=True)
        rates[:, :last, :last] += rates[:, :last, last, None] * rates[:, last, None, :last]
    weights = torch.ones_like(rates[:, 0])
    for state in range(1, rates.shape[1]):  # and put the states back
        weights[:, state] = (weights[:, :state] * rates[:, :state, state]).sum(dim=1)
    return weights / weights.sum(dim=1, keepdim=True)
