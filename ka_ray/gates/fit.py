"""Learn a gate from images whose owner is known: hints, or folders of one teacher each.

Shapes: n images, N teachers, D inputs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.gate import Gate
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.numerics.logistic_regression import fit_logistic_regression

PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001)
"""Penalties to choose from, from the strongest. They do not depend on the number of features."""

MIN_HINTS = 2
"""Smallest number of images per teacher that a gate is learned from."""


@dataclass(frozen=True)
class GateProblem:
    """A regression whose fixed parts are computed once, and that many fits share.

    Attributes:
        label_sets: The teachers' classes.
        scaling: Measured on all images of the sample, with or without a known owner.
        inputs: `[n, D]`, of the images whose owner is known.
        energies: `[n, N]`, what the ensemble says of them; with a column of zeros if some belong to nobody.
        owners: `[n]`, index of the owner; N for nobody.
    """

    label_sets: LabelSets
    scaling: InputScaling
    inputs: Tensor
    energies: Tensor
    owners: Tensor

    @staticmethod
    def build(sample: GateSample, owners: Tensor, label_sets: LabelSets) -> "GateProblem":
        """Build the problem of a sample.

        Args:
            sample: All images that the scaling may be measured on.
            owners: `[n]` integers, the index of each image's teacher, N for images of no teacher, and
                negative where the owner is not known.
            label_sets: The teachers' classes.

        Raises:
            InputError: A teacher has fewer than :data:`MIN_HINTS` images.
        """
        for index, teacher in enumerate(label_sets.by_teacher):
            count = int((owners == index).sum())
            if count < MIN_HINTS:
                raise InputError(
                    f"a gate needs at least {MIN_HINTS} images of which teacher {teacher} is known to be the "
                    f"owner, and there are {count}; add hints for it"
                )
        known = sample.take(owners >= 0)
        scaling = InputScaling.measure(sample.features)
        energies = compute_energies(label_sets, known.scores.float())
        if (owners == energies.shape[1]).any():
            energies = torch.cat([energies, torch.zeros_like(energies[:, :1])], dim=1)
        return GateProblem(label_sets, scaling, scaling(known.features), energies, owners[owners >= 0])

    def solve(self, penalty: float, chosen: Tensor, learned_from: str) -> Gate:
        """Learn a gate from some of the images, `[n]` mask or index; each teacher's together count the same.

        How many hints a user has of a teacher says nothing about how many images are its own, so the teachers
        are weighted equally. What the ensemble believes about shares stays, because it is the offset.
        """
        owners = self.owners[chosen]
        targets = functional.one_hot(owners.long(), self.energies.shape[1]).float()
        solved = fit_logistic_regression(
            self.inputs[chosen],
            targets,
            penalty,
            offset=self.energies[chosen],
            sample_weights=1 / targets.sum(dim=0).clamp_min(1)[owners.long()],
        )
        scale = torch.ones(len(self.label_sets.by_teacher))
        return Gate(self.label_sets, self.scaling, solved.weight, solved.bias, scale, learned_from)

    def log_owners(self, gate: Gate, chosen: Tensor) -> Tensor:
        """Return a gate's log p(owner) `[n, N]` of some of the images."""
        logits = self.energies[chosen] + self.inputs[chosen] @ gate.weight + gate.bias
        return logits[:, : len(self.label_sets.by_teacher)].log_softmax(dim=1)


def fit_gate(
    sample: GateSample, owners: Tensor, label_sets: LabelSets, penalty: float, learned_from: str = "hints"
) -> Gate:
    """Learn a gate by logistic regression on the features, with the teachers' energies as offset.

    The offset matters: on CIFAR-10 in two or three parts, 30 hints per teacher without it make the ensemble
    worse, with it better, because the gate need not learn what the scores say already.

    Args:
        sample: Images, of which only some need a known owner; all of them scale the features.
        owners: `[n]` integers, the index of each image's teacher, N for images of no teacher, and negative
            where the owner is not known.
        label_sets: The teachers' classes.
        penalty: See :func:`ka_ray.gates.cross_validation.choose_penalty`.
        learned_from: ``hints`` or ``known``, for reports.

    Raises:
        InputError: A teacher has too few images.
    """
    problem = GateProblem.build(sample, owners, label_sets)
    return problem.solve(penalty, torch.arange(len(problem.owners)), learned_from)
