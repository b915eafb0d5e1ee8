"""A gate that teaches itself: no label and no hint, from the images that the teachers claim most clearly."""

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.fit import COMPONENTS
from ka_ray.gates.gate import Gate, list_class_scores
from ka_ray.gates.inputs import MIN_DEVIATION, GateSample, InputScaling
from ka_ray.gates.pseudo_owners import choose_pseudo_owners
from ka_ray.gates.shares import match_shares
from ka_ray.numerics.logistic_regression import (
    LinearLogits,
    fit_logistic_regression,
    pool_logits,
    repeat_per_class,
)

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
        shares: `[N]`, the share of the images that belongs to each teacher. None: all own equally many. A
            wrong assumption does more harm than the gate can do good, see :func:`match_shares`.
        share: Share of the images of each predicted class that become pseudo-owners.
        correction: Factor of the logits that are learned from pseudo-owners, beside the energies. Features of
            a network that is nobody's teacher cannot repeat the energies' mistakes, and take a factor of 1.
        penalty: Of the logistic regression.

    Raises:
        InputError: A teacher claims no image, so there is nothing to learn from.
    """
    teachers = len(label_sets.by_teacher)
    scores, sizes = list_class_scores(label_sets, sample.scores, label_sets.num_scores)
    scale = repeat_per_class(equalise_energies(pool_logits(scores, sizes)), sizes)
    energies = pool_logits(scores * scale, sizes)
    shift = match_shares(energies, torch.ones(teachers) if shares is None else shares)
    owners = choose_pseudo_owners(energies + shift, sample.scores, label_sets, share)
    _check_claims(owners, label_sets)
    scaling = InputScaling.measure(sample.features)
    solved = _learn(sample, owners, scaling, teachers, penalty)
    # A gate has a weight per class: all classes of a teacher get the same.
    weight = repeat_per_class(correction * solved.weight, sizes)
    bias = repeat_per_class(correction * solved.bias + shift, sizes)
    return Gate(label_sets, scaling, weight, bias, scale, "self")


def _learn(
    sample: GateSample, owners: Tensor, scaling: InputScaling, teachers: int, penalty: float
) -> LinearLogits:
    """Learn pseudo-owners `[n]` from the inputs alone; return weights `[D, N]`."""
    basis, chosen = scaling.find_basis(sample.features, COMPONENTS), owners >= 0
    inputs = scaling(sample.take(chosen).features) @ basis
    targets = functional.one_hot(owners[chosen], teachers).float()
    solved = fit_logistic_regression(inputs, targets, penalty)
    return LinearLogits(basis @ solved.weight, solved.bias, solved.scale)


def equalise_energies(energies: Tensor) -> Tensor:
    """Return the factors `[N]` that give all teachers' energies `[n, N]` one deviation, the mean of theirs.

    Networks that were trained apart have energies of different scale, and the loudest owns too many images.
    The mean keeps p(owner) as sharp as it was.
    """
    deviation = energies.std(dim=0, correction=0).clamp_min(MIN_DEVIATION)
    return deviation.mean() / deviation


def _check_claims(owners: Tensor, label_sets: LabelSets) -> None:
    counts = torch.bincount(owners[owners >= 0], minlength=len(label_sets.by_teacher))
    for teacher, count in zip(label_sets.by_teacher, counts.tolist(), strict=True):
        if count == 0:
            raise InputError(
                f"the gate cannot teach itself: no image is claimed by teacher {teacher}. Give hints, or set "
                "scores.gate to none"
            )
