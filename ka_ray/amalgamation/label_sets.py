"""Label sets: from the teachers' own scores to one score vector over all classes.

Shapes: B images, N teachers, K_t classes of teacher t, K classes of the union, S classes known to more
than one teacher. All teachers' own scores stand side by side in one tensor ``own [B, sum of K_t]``.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.unify import unify
from ka_ray.errors import InputError

Rule = Literal["concatenate", "mean", "max", "conditional"]
Divergence = Callable[[Tensor, Tensor], Tensor]
"""From the student's scores and their target, both `[B, K]`, to a scalar loss."""

RULES: tuple[str, ...] = get_args(Rule)
MOST_LISTED = 8

_IN_WORDS = {
    "mean": "the target of such a class is the mean of the scores of the teachers that know it",
    "max": "the target of such a class is the highest score of the teachers that know it",
    "conditional": "the student learns from each teacher within that teacher's own classes, "
    "so that the teachers' scores need no common scale",
}


@dataclass(frozen=True)
class LabelSets:
    """The teachers' label sets, matched by class name, and the rule where they overlap.

    ``conditional`` is after Vongkulbhisal, Vinayavekhin and Visentini-Scarzanella, "Unifying
    Heterogeneous Classifiers with Distillation" (CVPR 2019): the softmax of teacher t is
    ``p_t(y) = p(y | y in Y_t)``, which says nothing about the classes outside of its label set Y_t.

    Attributes:
        by_teacher: teacher -> its class names, in the order of its scores.
        rule: One of RULES. None becomes ``concatenate`` for disjoint label sets, else ``mean``.
        center: Subtract from each teacher's scores of an image their mean, before the rule. A softmax does
            not see a constant added to all scores, so training leaves it to chance, and between teachers
            that have little in common it can decide which of them is believed.
    """

    by_teacher: Mapping[str, tuple[str, ...]]
    rule: str | None = None
    center: bool = False

    def __post_init__(self) -> None:
        """Choose the rule if it is left open; refuse one that does not fit the label sets.

        Raises:
            InputError: A teacher names a class twice; the rule is unknown; ``concatenate`` for
                overlapping label sets; ``conditional`` for sets not connected through shared classes.
        """
        for teacher, own in self.by_teacher.items():
            twice = [name for name, count in Counter(own).items() if count > 1]
            if twice:
                raise InputError(f"teacher {teacher}: classes names {twice[0]!r} twice; name each class once")
        overlap = self.overlap
        if self.rule is None:
            object.__setattr__(self, "rule", "mean" if overlap else "concatenate")
        if self.rule not in RULES:
            raise InputError(f"scores.rule is {self.rule!r}; accepted: {', '.join(RULES)}")
        if self.rule == "concatenate" and overlap:
            raise InputError(
                "scores.rule is 'concatenate', which needs disjoint label sets, but teachers share classes: "
                f"{_listed(overlap)}; accepted: mean, max, or conditional if shared classes connect "
                "all teachers"
            )
        groups = self._groups()
        if self.rule == "conditional" and len(groups) > 1:
            raise InputError(
                "scores.rule is 'conditional', which needs shared classes to compare the teachers by, but no "
                f"class connects {' with '.join('(' + ', '.join(group) + ')' for group in groups)}; "
                "accepted: mean, max, or concatenate if no teachers share a class"
            )

    @property
    def rule_description(self) -> str:
        """The rule, and whether scores are centred, for tables and reports."""
        return f"{self.rule}, centred" if self.center else str(self.rule)

    @property
    def classes(self) -> tuple[str, ...]:
        """The union of all class names in order of first appearance, teacher after teacher."""
        return tuple(dict.fromkeys(name for own in self.by_teacher.values() for name in own))

    @property
    def overlap(self) -> dict[str, tuple[str, ...]]:
        """Class -> the teachers that know it, for each class known to more than one."""
        knowing: dict[str, tuple[str, ...]] = {}
        for teacher, own in self.by_teacher.items():
            for name in own:
                knowing[name] = (*knowing.get(name, ()), teacher)
        return {name: teachers for name, teachers in knowing.items() if len(teachers) > 1}

    @property
    def num_scores(self) -> int:
        """The length of all teachers' own score vectors together."""
        return sum(len(own) for own in self.by_teacher.values())

    def columns(self, teacher: str) -> list[int]:
        """Where the classes of one teacher stand among ``classes``."""
        place = {name: column for column, name in enumerate(self.classes)}
        return [place[name] for name in self.by_teacher[teacher]]

    def split(self, own: Tensor) -> list[Tensor]:
        """Cut ``own`` into each teacher's scores `[B, K_t]`, in teacher order."""
        return list(own.split([len(classes) for classes in self.by_teacher.values()], dim=1))

    def amalgamate(self, own: Tensor) -> Tensor:
        """Give the ensemble's scores `[B, K]` by the rule, in the dtype of ``own``.

        For ``conditional`` these are log q, where q minimises ``sum_t KL(p_t || q restricted to Y_t)``.
        """
        if own.shape[1] != self.num_scores:
            raise ValueError(
                f"own scores are {own.shape[1]} wide, the teachers have {self.num_scores} together"
            )
        if self.center:
            own = torch.cat([part - part.mean(dim=1, keepdim=True) for part in self.split(own)], dim=1)
        if self.rule == "concatenate":
            return own
        places = self._places(own.device)
        known = places >= 0
        scores = own[:, places]  # [B, N, K]; place -1 reads some other score, which `known` hides
        if self.rule == "mean":
            return scores.where(known, 0).sum(dim=1) / known.sum(dim=0)
        if self.rule == "max":
            return scores.where(known, -torch.inf).amax(dim=1)
        conditionals = scores.double().where(known, -torch.inf).softmax(dim=2)
        return unify(conditionals, known).to(own.dtype)

    def loss(
        self, scores: Tensor, own: Tensor, divergence: Divergence, *, temperature: float = 1.0
    ) -> Tensor:
        """Compare the student with its teachers: a scalar.

        Args:
            scores: The student's, `[B, K]`.
            own: The teachers' own, `[B, num_scores]`.
            divergence: Between ``scores`` and the amalgamated scores. ``conditional`` does without: its
                loss is ``sum_t KL(p_t || softmax(scores restricted to Y_t))``, the mean over images.
            temperature: Softens both sides of ``conditional``; see `softened_kl`.
        """
        if self.rule != "conditional":
            return divergence(scores, self.amalgamate(own))
        own = own.to(torch.promote_types(own.dtype, scores.dtype))
        terms = [
            softened_kl(scores[:, self.columns(teacher)], part, temperature)
            for teacher, part in zip(self.by_teacher, self.split(own), strict=True)
        ]
        return torch.stack(terms).sum()

    def _places(self, device: torch.device) -> Tensor:
        """Where teacher t's score of class y stands in ``own``, -1 where it has none: `[N, K]`."""
        rows, start = [], 0
        for own in self.by_teacher.values():
            place = {name: start + column for column, name in enumerate(own)}
            rows.append([place.get(name, -1) for name in self.classes])
            start += len(own)
        return torch.tensor(rows, device=device)

    def _groups(self) -> list[tuple[str, ...]]:
        """The teachers, grouped by what shared classes connect, directly or through others."""
        groups: dict[tuple[str, ...], set[str]] = {}
        for teacher, own in self.by_teacher.items():
            near = [group for group, classes in groups.items() if not classes.isdisjoint(own)]
            classes = set(own).union(*(groups.pop(group) for group in near))
            groups[(*(member for group in near for member in group), teacher)] = classes
        return list(groups)


def describe_overlap(label_sets: LabelSets) -> str | None:
    """Say in one sentence which classes overlap and what is done; None for disjoint label sets.

    >>> describe_overlap(LabelSets({"pets": ("cat", "dog"), "wild": ("wolf", "dog")}))
    "The label sets overlap: 'dog' (pets, wild); by scores.rule mean, the target of such a class is \
the mean of the scores of the teachers that know it."
    """
    overlap = label_sets.overlap
    if not overlap:
        return None
    rule = str(label_sets.rule)
    return f"The label sets overlap: {_listed(overlap)}; by scores.rule {rule}, {_IN_WORDS[rule]}."


def _listed(overlap: Mapping[str, tuple[str, ...]]) -> str:
    parts = [f"{name!r} ({', '.join(teachers)})" for name, teachers in overlap.items()]
    more = f" and {len(parts) - MOST_LISTED} more" if len(parts) > MOST_LISTED else ""
    return ", ".join(parts[:MOST_LISTED]) + more


def softened_kl(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute ``T^2 KL(softmax(target / T) || softmax(scores / T))``, the mean over images.

    The factor keeps the gradient's size independent of T (Hinton, Vinyals and Dean, 2015).
    """
    log_student = torch.log_softmax(scores / temperature, dim=1)
    log_target = torch.log_softmax(target / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
