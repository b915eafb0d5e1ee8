"""A gate that teaches itself: no label and no hint, from the images that the teachers claim most clearly."""

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.gate import Gate
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.gates.pseudo_owners import choose_pseudo_owners, standardise_energies
from ka_ray.numerics.logistic_regression import fit_logistic_regression

SHARE, CORRECTION, PENALTY = 0.3, 0.5, 1e-4
"""Share of pseudo-owners per predicted class, factor of what is learned from them, and penalty.

Chosen on held-out training images of CIFAR-10 in parts. A gate of the features alone, without the energies,
made every ensemble there worse; half of the correction is safer than all of it.
"""


def fit_self_gate(
    sample: GateSample,
    label_sets: LabelSets,
    *,
    shares: Tensor | None = None,
    share: float = SHARE,
    correction: float = CORRECTION,
    penalty: float = PENALTY,
) -> Gate:
    """Learn a gate from pseudo-owners, in one round: more rounds drift away.

    Args:
        sample: Images without labels.
        label_sets: The teachers' classes.
        shares: `[N]`, the share of the images that belongs to each teacher. None: all own equally many. A wrong
            assumption does more harm than the gate can do good, see :func:`standardise_energies`.
        share: Share of the images of each predicted class that become pseudo-owners.
        correction: Factor of the logits that are learned from pseudo-owners, beside standardised energies.
        penalty: Of the logistic regression.

    Raises:
        InputError: A teacher claims no image, so there is nothing to learn from.
    """
    energies = compute_energies(label_sets, sample.scores.float())
    teachers = len(label_sets.by_teacher)
    scale, shift = standardise_energies(energies, torch.ones(teachers) if shares is None else shares)
    owners = choose_pseudo_owners(energies * scale + shift, sample.scores, label_sets, share)
    _check_claims(owners, label_sets)
    scaling = InputScaling.measure(sample.features)
    chosen = sample.take(owners >= 0)
    targets = functional.one_hot(owners[owners >= 0], teachers).float()
    solved = fit_logistic_regression(scaling(chosen.features), targets, penalty)
    weight, bias = correction * solved.weight, correction * solved.bias + shift
    return Gate(label_sets, scaling, weight, bias, scale, "self")


def _check_claims(owners: Tensor, label_sets: LabelSets) -> None:
    counts = torch.bincount(owners[owners >= 0], minlength=len(label_sets.by_teacher))
    for teacher, count in zip(label_sets.by_teacher, counts.tolist(), strict=True):
        if count == 0:
            raise InputError(
                f"the gate cannot teach itself: no image is claimed by teacher {teacher}. Give hints, or set "
                "scores.gate to none"
            )
