"""Learn a gate from images whose owner is known: hints, or folders of one teacher each.

Shapes: n images, N teachers, D inputs, C classes of all teachers and of nobody,
r directions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.class_model import believe_class_model, believe_scores
from ka_ray.gates.gate import Gate, list_class_scores
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.numerics.logistic_regression import (
    LinearLogits,
    fit_logistic_regression,
    pool_logits,
    repeat_per_class,
)

PENALTIES = (0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003)
"""Penalties to choose from, from the strongest. They do not depend on the number of features."""

COMPONENTS = 160
"""Largest number of directions per source of features that a gate learns weights for."""

MIN_HINTS = 2
"""Smallest number of images per teacher that a gate is learned from."""

MANY_HINTS = 100
"""Hints per teacher from which a gate needs no help of a class model, and its settings can be chosen."""


class TooFewOwners(InputError):
    """There are too few images whose owner is known."""


@dataclass(frozen=True)
class GateProblem:
    """A logistic regression on the features, with the teachers' scores as offset.

    The offset matters: on CIFAR-10 in two or three parts, 30 hints per teacher without it make the ensemble
    worse, with it better, because the gate need not learn what the scores say already. The fixed parts are
    computed once, and many fits share them.

    Attributes:
        label_sets: The teachers' classes.
        scaling: Measured on all images of the sample, with or without a known owner.
        basis: `[D, r]`, the main directions of the sample's inputs.
        inputs: `[n, r]`, of the images whose owner is known, in that basis.
        scores: `[n, C]`, what the teachers say of them.
        sizes: Number of classes of each owner.
        owners: `[n]`, index of the owner; N for nobody.
        prior: What is there before anything is learned from owners: the scores, or, where few owners are
            known, part of them and a class model.
        few_prior: The prior of a gate from few of these owners, for a learning curve.
    """

    label_sets: LabelSets
    scaling: InputScaling
    basis: Tensor
    inputs: Tensor
    scores: Tensor
    sizes: tuple[int, ...]
    owners: Tensor
    prior: LinearLogits
    few_prior: LinearLogits

    @staticmethod
    def build(
        sample: GateSample, owners: Tensor, label_sets: LabelSets, *, min_nobody: int = MIN_HINTS
    ) -> "GateProblem":
        """Build the problem of a sample.

        Args:
            sample: All images that the scaling may be measured on.
            owners: `[n]` integers, the index of each image's teacher, N for images of no teacher, and
                negative where the owner is not known.
            label_sets: The teachers' classes.
            min_nobody: Smallest number of images of no teacher from which the gate learns to find others; of
                fewer it learns nothing.

        Raises:
            TooFewOwners: A teacher has fewer than :data:`MIN_HINTS` images.
        """
        for index, teacher in enumerate(label_sets.by_teacher):
            count = int((owners == index).sum())
            if count < MIN_HINTS:
                raise TooFewOwners(
                    f"a gate needs at least {MIN_HINTS} images of which teacher {teacher} is known to be the "
                    f"owner, and there are {count}; add hints for it"
                )
        teachers = len(label_sets.by_teacher)
        if int((owners == teachers).sum()) < max(MIN_HINTS, min_nobody):
            owners = owners.masked_fill(owners == teachers, -1)
        known, is_known = sample.take(owners >= 0), owners >= 0
        scaling = InputScaling.measure(sample.features)
        nobody = int((owners == teachers).any())
        scores, sizes = list_class_scores(label_sets, known.scores, label_sets.num_scores + nobody)
        basis = scaling.find_basis(sample.features, COMPONENTS)
        inputs, owners = scaling(sample.features) @ basis, owners[is_known].long()
        prior = few = believe_scores(inputs, sizes)
        if not nobody:
            few = believe_class_model(inputs, sample, label_sets)
            prior = few if int(torch.bincount(owners).min()) < MANY_HINTS else prior
        known_inputs = inputs[is_known]
        return GateProblem(label_sets, scaling, basis, known_inputs, scores, tuple(sizes), owners, prior, few)

    @property
    def energies(self) -> Tensor:
        """`[n, N]`, what the ensemble goes by: the teachers' energies."""
        return pool_logits(self.scores, self.sizes)[:, : len(self.label_sets.by_teacher)]

    @property
    def offset(self) -> Tensor:
        """`[n, C]`, logits of the classes before anything is learned from owners."""
        return self.prior(self.inputs) + self.scores * repeat_per_class(self.prior.scale, self.sizes)

    def solve(self, penalty: float, per_class: bool, chosen: Tensor) -> LinearLogits:
        """Learn from some of the images, `[n]` mask or index; each owner's together count the same.

        How many hints a user has of a teacher says nothing about how many images are its own, so the owners
        are weighted equally. What the ensemble believes about shares stays, because it is the offset.

        Args:
            penalty: Of the weights.
            per_class: Whether every class gets weights, else all classes of an owner get the same.
            chosen: Which images.

        Returns:
            Weights in the basis, `[r, C]`.
        """
        owners = self.owners[chosen]
        targets = functional.one_hot(owners, len(self.sizes)).float()
        offset = self.offset[chosen]
        solved = fit_logistic_regression(
            self.inputs[chosen],
            targets,
            penalty,
            offset=offset if per_class else pool_logits(offset, self.sizes),
            sample_weights=1 / targets.sum(dim=0).clamp_min(1)[owners],
            sizes=self.sizes if per_class else None,
            learn_scale=True,
        )
        if per_class:
            return solved
        weight, bias = (repeat_per_class(values, self.sizes) for values in (solved.weight, solved.bias))
        return LinearLogits(weight, bias, solved.scale)

    def log_owners(self, solved: LinearLogits, chosen: Tensor) -> Tensor:
        """Return log p(owner) `[n, N]` of some of the images, given that they belong to a teacher."""
        logits = solved.pool(self.inputs[chosen], self.offset[chosen], self.sizes)
        return logits[:, : len(self.label_sets.by_teacher)].log_softmax(dim=1)

    @property
    def knows_nobody(self) -> bool:
        """Whether there are images of no teacher to learn from."""
        return len(self.sizes) > len(self.label_sets.by_teacher)

    def nobody(self, solved: LinearLogits, chosen: Tensor) -> Tensor:
        """Return the probability `[n]` that some of the images belong to nobody; 0 if that is not learned."""
        logits = solved.pool(self.inputs[chosen], self.offset[chosen], self.sizes)
        return logits.softmax(dim=1)[:, len(self.label_sets.by_teacher) :].sum(dim=1)

    def fit(self, penalty: float, per_class: bool, learned_from: str = "hints") -> Gate:
        """Learn a gate from all images.

        Args:
            penalty: See :func:`ka_ray.gates.cross_validation.choose_gate`.
            per_class: Whether every class gets weights of its own, which takes some hundred images.
            learned_from: Kept in the gate's description.
        """
        solved = self.solve(penalty, per_class, torch.arange(len(self.owners)))
        scale = repeat_per_class(solved.scale, self.sizes)
        weight = self.basis @ (solved.weight + self.prior.weight * scale)
        bias = solved.bias + self.prior.bias * scale
        score_scale = scale * repeat_per_class(self.prior.scale, self.sizes)
        return Gate(self.label_sets, self.scaling, weight, bias, score_scale, learned_from)
