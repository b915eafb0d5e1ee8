"""Judge gates by images whose owner is known: cross-validation and the learning curve over hints.

Shapes: n images whose owner is known, N teachers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ka_ray.gates.fit import MANY_HINTS, MIN_HINTS, PENALTIES, GateProblem
from ka_ray.gates.gate import NOBODY_THRESHOLD

MAX_FOLDS, MANY_IMAGES, CURVE_DRAWS = 5, 1000, 3
"""Parts of a cross-validation, images beyond which one part is judged, and draws per point of a curve."""

FEW_HINTS_PENALTY = 1.0
"""Penalty times the number of hints per teacher, if they are fewer than :data:`MANY_HINTS`.

1 is the safe choice on held-out training images of CIFAR-10 in two and three parts: with .1, 30 hints per
teacher close 10 % of the gap instead of 4 % for fine-tuned halves, but cost up to 10 % for plain ones.
"""

FACTORS = tuple(2.0 ** (step / 2) for step in range(-12, 5))
"""Factors of the energies, of which the best makes them as sure of owners as they are right."""


MAX_LOST = 0.1
"""Share of the teachers' images that a gate may give to nobody and still be said to help.

The student does not learn from these. The limit is a choice, not a measured one.
"""


@dataclass(frozen=True)
class GateCheck:
    """What a gate says of images that it was not learned from, beside what the ensemble says of them.

    Every teacher's images together count the same. Losses and accuracies are of the teachers' images, and of
    p(owner) among the teachers: whether an image belongs to any of them is another question, with figures of
    its own.

    Attributes:
        images: Number of images of which it is known which teacher owns them.
        penalty: The penalty that was used.
        per_class: Whether every class got weights of its own.
        log_loss: Mean of ``-log p(owner)``, in nats, with the gate.
        ungated_log_loss: The same by the teachers' energies alone, times the factor that is best for them:
            without it, any gate would win that says less surely what they say.
        owner_accuracy: Share of images whose most probable owner is the right one, with the gate.
        ungated_owner_accuracy: The same by the teachers' energies alone.
        standard_error: Of the difference of the log losses.
        nobody_found: Share of nobody's images that are left out; None if the gate knows no nobody.
        lost: Share of the teachers' images that are left out with them.
    """

    images: int
    penalty: float
    per_class: bool
    log_loss: float
    ungated_log_loss: float
    owner_accuracy: float
    ungated_owner_accuracy: float
    standard_error: float
    nobody_found: float | None
    lost: float

    @property
    def helps(self) -> bool:
        """Whether the gate is better by more than chance: one standard error, and not less often right.

        And it must not leave out more than :data:`MAX_LOST` of the teachers' images.
        """
        gain = self.ungated_log_loss - self.log_loss
        is_better = gain > self.standard_error and self.owner_accuracy >= self.ungated_owner_accuracy
        return is_better and self.lost <= MAX_LOST


def choose_gate(problem: GateProblem, *, seed: int = 0) -> GateCheck:
    """Choose the settings of a gate, and say by cross-validation what the gate is worth with them.

    Args:
        problem: Images whose owner is known. Of more than :data:`MANY_IMAGES` one part is enough to judge on.
        seed: Seed of the parts.

    Returns:
        Figures of the settings with the smallest loss. The same images chose them, so they flatter them a
        little.
    """
    folds = assign_folds(problem.owners, seed)
    checks = [_check(problem, *settings, folds) for settings in list_settings(problem)]
    return min(checks, key=lambda check: check.log_loss)


def list_settings(problem: GateProblem) -> list[tuple[float, bool]]:
    """Return the penalties, and whether every class gets weights, that are worth a try.

    Few hints do not tell penalties apart, so theirs is fixed.
    """
    fewest = int(torch.bincount(problem.owners.long()).min())
    if fewest < MANY_HINTS:
        return [few_settings(fewest)]
    return [(penalty, per_class) for per_class in (False, True) for penalty in PENALTIES]


def few_settings(hints: int) -> tuple[float, bool]:
    """Return the settings of a gate from fewer than :data:`MANY_HINTS` hints per teacher."""
    return FEW_HINTS_PENALTY / hints, False


def assign_folds(owners: Tensor, seed: int) -> Tensor:
    """Return the part `[n]` that each image is judged in, with every teacher's images in all of them.

    Args:
        owners: `[n]`, index of each image's teacher.
        seed: Seed of the random order.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = owners.unique(return_counts=True)[1]
    num_folds = max(2, min(MAX_FOLDS, int(counts.min())))
    folds = torch.empty(len(owners), dtype=torch.long)
    for owner in owners.unique():
        places = (owners == owner).nonzero().flatten()
        folds[places[torch.randperm(len(places), generator=generator)]] = (
            torch.arange(len(places)) % num_folds
        )
    return folds


def _check(problem: GateProblem, penalty: float, per_class: bool, folds: Tensor) -> GateCheck:
    """Judge images by the gate that was learned without their part."""
    judged = folds == 0 if len(folds) > MANY_IMAGES else torch.ones_like(folds, dtype=torch.bool)
    gated, nobody = torch.empty_like(problem.energies), torch.empty_like(problem.energies[:, 0])
    for fold in folds[judged].unique():
        solved = problem.solve(penalty, per_class, folds != fold)
        gated[folds == fold] = problem.log_owners(solved, folds == fold)
        nobody[folds == fold] = problem.nobody(solved, folds == fold)
    return _compare(problem, (penalty, per_class), gated[judged], nobody[judged], judged)


def _compare(
    problem: GateProblem, settings: tuple[float, bool], gated: Tensor, nobody: Tensor, chosen: Tensor
) -> GateCheck:
    """Compare log p(owner) `[n, N]` and p(nobody) `[n]` of the images of a mask with the ensemble."""
    teachers = len(problem.label_sets.by_teacher)
    owned, left_out = problem.owners[chosen] < teachers, nobody > NOBODY_THRESHOLD
    owners, gated = problem.owners[chosen][owned].long(), gated[owned]
    energies = problem.energies[chosen][owned]
    counts = torch.bincount(owners, minlength=teachers)
    weights = (1 / counts[owners].double()) / (counts > 0).sum()  # add up to 1

    def mean(values: Tensor) -> float:
        return float((weights * values.double()).sum())

    def loss(log_owners: Tensor) -> Tensor:
        return -log_owners.gather(1, owners[:, None])[:, 0]

    losses = loss(gated)
    losses_before = min((loss((energies * factor).log_softmax(dim=1)) for factor in FACTORS), key=mean)
    gains = losses_before - losses
    variance = float((weights.square() * (gains - mean(gains)).double().square()).sum())
    return GateCheck(
        len(owners),
        *settings,
        mean(losses),
        mean(losses_before),
        mean(gated.argmax(dim=1) == owners),
        mean(energies.argmax(dim=1) == owners),
        math.sqrt(variance),
        float(left_out[~owned].double().mean()) if problem.knows_nobody else None,
        mean(left_out[owned]),
    )


def measure_learning_curve(
    problem: GateProblem, counts: Sequence[int], settings: tuple[float, bool], *, seed: int = 0
) -> dict[int, float]:
    """Measure how often gates are right that learned from fewer hints: do more hints help?

    Args:
        problem: Images whose owner is known.
        counts: Numbers of hints per teacher, and of nobody if the gate knows it; those
            that leave too few images to judge on are left out.
        settings: Penalty and `per_class` of a gate from all hints. Fewer hints get a stronger penalty, in
            inverse proportion to their number: a penalty is a prior that each hint weakens. Below
            :data:`MANY_HINTS`, gates are those that so few hints would give.
        seed: Seed of the draws.

    Returns:
        Number of hints per teacher -> share of the other hints whose owner is right, each teacher's counting
        the same; a mean over draws.
    """
    available = int(torch.bincount(problem.owners.long()).min())
    generator = torch.Generator().manual_seed(seed)
    curve = {}
    for count in counts:
        if not MIN_HINTS <= count <= available - MIN_HINTS:
            continue
        few = count < MANY_HINTS
        chosen = few_settings(count) if few else (settings[0] * available / count, settings[1])
        learned = replace(problem, prior=problem.few_prior) if few else problem
        rates = [_check_draw(learned, chosen, count, generator) for _ in range(CURVE_DRAWS)]
        curve[count] = sum(rates) / len(rates)
    return curve


def _check_draw(
    problem: GateProblem, settings: tuple[float, bool], count: int, generator: torch.Generator
) -> float:
    """Learn from a draw of hints, and return how often the owner of the other hints is right."""
    drawn = torch.zeros(len(problem.owners), dtype=torch.bool)
    for owner in problem.owners.unique():
        places = (problem.owners == owner).nonzero().flatten()
        drawn[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    solved = problem.solve(*settings, drawn)
    gated, nobody = problem.log_owners(solved, ~drawn), problem.nobody(solved, ~drawn)
    return _compare(problem, settings, gated, nobody, ~drawn).owner_accuracy
