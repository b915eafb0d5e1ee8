"""Judge a gate that teaches itself without any label or hint: each teacher judges what the others learned.

Shapes: n images, N teachers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.gates.self_taught import CORRECTION, PENALTY
from ka_ray.numerics.logistic_regression import fit_logistic_regression

END = 0.2
"""Share of the images at each end of a teacher's energy that count as its own, and as not its own."""


@dataclass(frozen=True)
class SelfJudgement:
    """How well others tell the images that a teacher is surest of, without and with what they learned.

    Attributes:
        before: Teacher -> area under the ROC curve, of the other teachers' energies.
        after: The same for what the other teachers' features say besides.
    """

    before: dict[str, float]
    after: dict[str, float]

    @property
    def gain(self) -> float:
        """Mean over the teachers of the area that is gained."""
        return sum(self.after[teacher] - self.before[teacher] for teacher in self.before) / len(self.before)

    @property
    def helps(self) -> bool:
        """Whether something is gained in the mean, and nothing is lost for any teacher."""
        return self.gain > 0 and all(self.after[teacher] >= self.before[teacher] for teacher in self.before)


def judge_self_gate(sample: GateSample, label_sets: LabelSets, *, seed: int = 0) -> SelfJudgement:
    """Judge whether teaching itself makes a gate better, see :func:`ka_ray.gates.self_taught.fit_self_gate`.

    A gate that is judged by the energies that it learned from agrees with them, right or wrong. So for each
    teacher the images at the two ends of its energy are the test, and the others, whose networks did not see
    that energy, are tested twice: by their energies, and with what their features learned from the two ends
    of these energies. Mistakes of the test lower both figures alike as long as the networks' mistakes are
    unrelated; the idea is that of co-training (Blum and Mitchell, COLT 1998).

    Args:
        sample: Images without labels.
        label_sets: The teachers' classes; two teachers or more.
        seed: Seed of the halves: an image's logit comes from the half that it is not in.
    """
    energies = compute_energies(label_sets, sample.scores.float())
    energies = (energies - energies.mean(dim=0)) / energies.std(dim=0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(seed)
    halves = torch.rand(len(sample), generator=generator) < 0.5
    names = list(label_sets.by_teacher)
    before, after = {}, {}
    for index, teacher in enumerate(names):
        test = mark_ends(energies[:, index])
        rest = [k for k in range(len(names)) if k != index]
        claim = -energies[:, rest].amax(dim=1)
        sources = {source: rows for source, rows in sample.features.items() if source != teacher}
        learned = _learn_in_halves(InputScaling.measure(sources)(sources), mark_ends(claim), halves)
        combined = claim + CORRECTION * learned * claim.std() / learned.std().clamp_min(1e-6)
        tested = test >= 0
        before[teacher] = area_under_curve(claim[tested], test[tested] == 1)
        after[teacher] = area_under_curve(combined[tested], test[tested] == 1)
    return SelfJudgement(before, after)


def mark_ends(values: Tensor) -> Tensor:
    """Return 1 for the images with the largest values, 0 for those with the smallest, else -1; `[n]`."""
    order, count = values.argsort(stable=True), int(END * len(values))
    marks = torch.full((len(values),), -1, dtype=torch.long)
    marks[order[:count]], marks[order[len(values) - count :]] = 0, 1
    return marks


def _learn_in_halves(inputs: Tensor, marks: Tensor, halves: Tensor) -> Tensor:
    """Return each image's logit of the mark 1, `[n]`, learned from the half that it is not in."""
    logits = inputs.new_zeros(len(inputs))
    for half in (halves, ~halves):
        chosen = half & (marks >= 0)
        solved = fit_logistic_regression(inputs[chosen], functional.one_hot(marks[chosen], 2), PENALTY)
        scores = solved(inputs[~half])
        logits[~half] = scores[:, 1] - scores[:, 0]
    return logits


def area_under_curve(values: Tensor, positive: Tensor) -> float:
    """Return how often a positive image has a larger value than another one, ties counted half.

    Args:
        values: `[n]`.
        positive: `[n]` booleans, of both kinds.
    """
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(dim=0).double()
    ranks = (ends - (counts.double() - 1) / 2)[places]  # mean rank of equal values, from 1
    num, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - num * (num + 1) / 2) / (num * others))
