"""Combine the teachers' scores by the probability that an image belongs to each teacher.

Shapes: B images, N teachers, K_t classes of teacher t, K classes of the union.
"""

import torch
from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets


def compute_energies(label_sets: LabelSets, teacher_scores: Tensor) -> Tensor:
    """Compute each teacher's energy of an image, the log of the sum of its exponentiated scores.

    The softmax over concatenated scores is ``p(owner) p(class | owner)``, where p(owner) is the softmax
    of the energies and p(class | owner) each teacher's own softmax: the ensemble goes by the energies. As
    a score of whether an image is a network's own: Liu et al., "Energy-based Out-of-distribution
    Detection" (NeurIPS 2020), with the sign reversed.

    Args:
        label_sets: The teachers' classes, and whether their scores are centred first.
        teacher_scores: `[B, sum of K_t]`, not softmaxed.

    Returns:
        `[B, N]`, in the unit of the scores.
    """
    parts = label_sets.split(teacher_scores)
    if label_sets.center:
        parts = [part - part.mean(dim=1, keepdim=True) for part in parts]
    return torch.stack([part.logsumexp(dim=1) for part in parts], dim=1)


def gated_label_sets(label_sets: LabelSets) -> LabelSets:
    """Return the label sets whose rule combines gated scores to log p(class).

    Gated scores are not centred: the gate has compared the teachers, and centring would undo it.

    Args:
        label_sets: The teachers' classes, with the rule and the centring of scores without a gate.
    """
    return LabelSets(label_sets.by_teacher, "sum" if label_sets.overlap else "concatenate")


def gate_scores(label_sets: LabelSets, teacher_scores: Tensor, log_owners: Tensor) -> Tensor:
    """Return ``log p(owner t) + log p_t(class)``, where p_t is the softmax of teacher t.

    Within a teacher, its scores only get another constant. The rule `concatenate`, or `sum` where label sets
    overlap, combines them to log p(class). The decomposition into owner and class within the owner is that of
    Kim et al., "A Theoretical Study on Solving Continual Learning" (NeurIPS 2022).

    Args:
        label_sets: The teachers' classes.
        teacher_scores: `[B, sum of K_t]`.
        log_owners: `[B, N]`, log p(owner), from a gate.

    Returns:
        `[B, sum of K_t]`, in the dtype of ``log_owners``.
    """
    parts = label_sets.split(teacher_scores.to(log_owners.dtype))
    return torch.cat([part.log_softmax(dim=1) + log_owners[:, [t]] for t, part in enumerate(parts)], dim=1)


def amalgamate_by_owner(label_sets: LabelSets, teacher_scores: Tensor, log_owners: Tensor) -> Tensor:
    """Compute ``log p(class) = log sum_t p(owner t) p_t(class)``, see :func:`gate_scores`.

    A class that several teachers know gets probability from each of them.

    Args:
        label_sets: The teachers' classes.
        teacher_scores: `[B, sum of K_t]`.
        log_owners: `[B, N]`, log p(owner), from a gate.

    Returns:
        `[B, K]`, scores whose softmax is p(class), in the dtype of ``log_owners``.
    """
    return gated_label_sets(label_sets).amalgamate(gate_scores(label_sets, teacher_scores, log_owners))
