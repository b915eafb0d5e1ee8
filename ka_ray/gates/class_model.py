"""Learn what images of each class look like from the ensemble's own answers: no label, and no owner.

Shapes: n images, r inputs, N teachers, C classes of all teachers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.gates.gate import list_class_scores
from ka_ray.gates.inputs import GateSample
from ka_ray.numerics.logistic_regression import LinearLogits, pool_logits, repeat_per_class

SHRINKAGE = 1.0
"""Multiple of the mean variance within classes that is added to every variance; .3 to 3 do about the same."""

SCORE_FACTOR = 0.3
"""Factor of the scores beside a class model, which says much of the same; .2 to .4 do about the same."""


def fit_class_model(
    inputs: Tensor, probabilities: Tensor, shrinkage: float = SHRINKAGE
) -> tuple[Tensor, Tensor]:
    """Fit a Gaussian per class with one covariance (linear discriminant analysis) to uncertain classes.

    Single answers of the ensemble are often wrong, but the mean of a class over thousands of images is nearly
    right, and says more of an image than the answer for it. One round: a second one, from the model's own
    answers, drifts away.

    Args:
        inputs: `[n, r]`.
        probabilities: `[n, C]`, p(class | image) by the ensemble; rows add up to 1.
        shrinkage: Towards a covariance of equal variances, above 0.

    Returns:
        Weights `[r, C]` and biases `[C]` of the logits of p(class | inputs), both with mean 0 over the
        classes, in the dtype of the inputs.
    """
    rows, claimed = inputs.double(), probabilities.double()
    shares = claimed.mean(dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    means = claimed.T @ rows / (len(rows) * shares[:, None])
    within = rows.T @ rows / len(rows) - (means * shares[:, None]).T @ means
    ridge = shrinkage * within.diagonal().mean() * torch.eye(len(within)).to(within)
    weight = torch.linalg.solve(within + ridge, means.T)
    bias = shares.log() - (means.T * weight).sum(dim=0) / 2
    return (weight - weight.mean(dim=1, keepdim=True)).to(inputs), (bias - bias.mean()).to(inputs)


def believe_scores(inputs: Tensor, sizes: Sequence[int]) -> LinearLogits:
    """Return the logits that are the teachers' scores alone.

    Args:
        inputs: `[n, r]`, for their width and dtype.
        sizes: Number of classes of each owner.
    """
    weight = inputs.new_zeros(inputs.shape[1], sum(sizes))
    return LinearLogits(weight, weight.new_zeros(sum(sizes)), weight.new_ones(len(sizes)))


def believe_class_model(inputs: Tensor, sample: GateSample, label_sets: LabelSets) -> LinearLogits:
    """Return the logits of a class model, learned from the ensemble's answers, and part of the scores.

    Where a network knows the classes by their names, the ensemble's p(owner) is multiplied by that network's.
    p(class | owner) stays that of the teacher, which has learned its classes from images.

    Args:
        inputs: `[n, r]`, the inputs of the sample.
        sample: All images, with and without a known owner.
        label_sets: The teachers' classes.
    """
    scores, sizes = list_class_scores(label_sets, sample.scores, label_sets.num_scores)
    answers = scores
    if sample.by_name is not None:
        owners = pool_logits(sample.by_name.float(), sizes).log_softmax(dim=1)
        answers = scores + repeat_per_class(owners, sizes)
    weight, bias = fit_class_model(inputs, answers.softmax(dim=1))
    return LinearLogits(weight, bias, torch.full((len(sizes),), SCORE_FACTOR).to(weight))
