"""Match the teachers' label sets, and combine their scores into one score vector over all classes.

Shapes: B images, N teachers, K_t classes of teacher t, K classes of the union. ``teacher_scores``
`[B, sum of K_t]` holds the scores of all teachers side by side, in the order of the teachers.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ka_ray.amalgamation.unify import unify_distributions
from ka_ray.errors import InputError

Rule = Literal["concatenate", "mean", "max", "conditional", "sum"]
Divergence = Callable[[Tensor, Tensor], Tensor]
"""Maps the student's scores and their target, both `[B, K]`, to a scalar loss."""

RULES: tuple[str, ...] = get_args(Rule)
MAX_LISTED = 8
"""Maximum number of shared classes that a message names."""

_RULE_EFFECTS = {
    "mean": "the target score of a shared class is the mean over the teachers that know it",
    "max": "the target score of a shared class is the maximum over the teachers that know it",
    "sum": "the probability of a shared class is the sum over the teachers that know it, each times that of "
    "the teacher as the image's owner",
    "conditional": "the student learns from each teacher only among that teacher's classes, so the teachers' "
    "scores need no common scale",
}


@dataclass(frozen=True)
class LabelSets:
    """The teachers' label sets, matched by class name, and the rule that combines their scores.

    The rule ``conditional`` follows Vongkulbhisal, Vinayavekhin and Visentini-Scarzanella, "Unifying
    Heterogeneous Classifiers with Distillation" (CVPR 2019): the softmax of teacher t is read as
    ``p_t(y) = p(y | y in Y_t)``, which says nothing about classes outside its label set Y_t.

    Attributes:
        by_teacher: teacher -> its class names, in the order of its scores.
        rule: One of :data:`RULES`. None is replaced by ``concatenate`` for disjoint label sets, else by
            ``mean``.
        center: Whether each teacher's scores of an image are centred at 0 before the rule. A constant added
            to all scores does not change a softmax, so its value after training is arbitrary, yet it can
            decide which of two teachers has the largest score.
    """

    by_teacher: Mapping[str, tuple[str, ...]]
    rule: str | None = None
    center: bool = False

    def __post_init__(self) -> None:
        """Choose the rule if it is None, and check that it fits the label sets.

        Raises:
            InputError: A teacher names a class twice; the rule is unknown; the rule is ``concatenate`` but
                label sets overlap; the rule is ``conditional`` but shared classes do not connect all
                teachers.
        """
        for teacher, own in self.by_teacher.items():
            twice = [name for name, count in Counter(own).items() if count > 1]
            if twice:
                raise InputError(
                    f"teacher {teacher}: classes names {twice[0]!r} more than once; name each class once"
                )
        overlap = self.overlap
        if self.rule is None:
            # A frozen dataclass can set its own fields only in this way.
            object.__setattr__(self, "rule", "mean" if overlap else "concatenate")
        if self.rule not in RULES:
            raise InputError(f"scores.rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        if self.rule == "concatenate" and overlap:
            raise InputError(
                "scores.rule is 'concatenate', which needs disjoint label sets, but teachers share classes: "
                f"{_list_shared_classes(overlap)}; choose mean or max, or conditional if shared classes "
                "connect all teachers"
            )
        groups = self._connected_teachers()
        if self.rule == "conditional" and len(groups) > 1:
            listed = " with ".join(f"({', '.join(group)})" for group in groups)
            raise InputError(
                "scores.rule is 'conditional', which compares teachers by the classes that they share, but "
                f"no class connects {listed}; choose mean or max, or concatenate if no teachers share a class"
            )

    @property
    def rule_description(self) -> str:
        """The rule and whether scores are centred, for tables and reports: "mean, centred"."""
        return f"{self.rule}, centred" if self.center else str(self.rule)

    @property
    def classes(self) -> tuple[str, ...]:
        """The union of all class names in the order of their first appearance, teacher by teacher."""
        return tuple(dict.fromkeys(name for own in self.by_teacher.values() for name in own))

    @property
    def overlap(self) -> dict[str, tuple[str, ...]]:
        """Class -> the teachers that know it, for every class that more than one teacher knows."""
        teachers_of: dict[str, tuple[str, ...]] = {}
        for teacher, own in self.by_teacher.items():
            for name in own:
                teachers_of[name] = (*teachers_of.get(name, ()), teacher)
        return {name: teachers for name, teachers in teachers_of.items() if len(teachers) > 1}

    @property
    def num_scores(self) -> int:
        """Sum of all K_t: the number of scores of all teachers together."""
        return sum(len(own) for own in self.by_teacher.values())

    def columns(self, teacher: str) -> list[int]:
        """Return the indices of a teacher's classes in ``classes``, in the order of the teacher's scores."""
        index = {name: column for column, name in enumerate(self.classes)}
        return [index[name] for name in self.by_teacher[teacher]]

    def split(self, teacher_scores: Tensor) -> list[Tensor]:
        """Split scores `[B, sum of K_t]` into one `[B, K_t]` per teacher, in the order of the teachers."""
        return list(teacher_scores.split([len(classes) for classes in self.by_teacher.values()], dim=1))

    def amalgamate(self, teacher_scores: Tensor) -> Tensor:
        """Combine the teachers' scores `[B, sum of K_t]` into the ensemble's scores `[B, K]` by the rule.

        With ``conditional`` the result is log q, where q minimises ``sum_t KL(p_t || q restricted to Y_t)``.
        The dtype is kept.

        Raises:
            ValueError: The number of scores is not the sum of all K_t.
        """
        width = teacher_scores.shape[1]
        if width != self.num_scores:
            raise ValueError(
                f"got {width} scores per image, but the teachers have {self.num_scores} together"
            )
        if self.center:
            parts = self.split(teacher_scores)
            teacher_scores = torch.cat([part - part.mean(dim=1, keepdim=True) for part in parts], dim=1)
        if self.rule == "concatenate":  # disjoint classes are listed teacher by teacher, as the scores are
            return teacher_scores
        indices = self._score_indices(teacher_scores.device)
        known = indices >= 0
        scores = teacher_scores[:, indices]  # [B, N, K]; index -1 reads a wrong score, which `known` hides
        if self.rule == "mean":
            return scores.where(known, 0).sum(dim=1) / known.sum(dim=0)
        if self.rule == "sum":
            return scores.where(known, -torch.inf).logsumexp(dim=1)
        if self.rule == "max":
            return scores.where(known, -torch.inf).amax(dim=1)
        # In float64: a confident teacher's small probabilities matter where others know those classes.
        conditionals = scores.double().where(known, -torch.inf).softmax(dim=2)
        return unify_distributions(conditionals, known).to(teacher_scores.dtype)

    def loss(
        self, scores: Tensor, teacher_scores: Tensor, divergence: Divergence, *, temperature: float = 1.0
    ) -> Tensor:
        """Compute the loss of the student's scores against those of its teachers.

        Args:
            scores: `[B, K]`, the student's scores.
            teacher_scores: `[B, sum of K_t]`.
            divergence: Compares ``scores`` with the amalgamated scores. The rule ``conditional`` does not use
                it: its loss is ``sum_t KL(p_t || softmax(scores restricted to Y_t))``.
            temperature: Softens both sides for ``conditional``, see :func:`softened_kl`; other rules ignore
                it.

        Returns:
            A scalar, the mean over images.
        """
        if self.rule != "conditional":
            return divergence(scores, self.amalgamate(teacher_scores))
        # Stored scores can be float16, in which a softmax loses too much.
        promoted = teacher_scores.to(torch.promote_types(teacher_scores.dtype, scores.dtype))
        terms = [
            softened_kl(scores[:, self.columns(teacher)], part, temperature)
            for teacher, part in zip(self.by_teacher, self.split(promoted), strict=True)
        ]
        return torch.stack(terms).sum()

    def _score_indices(self, device: torch.device) -> Tensor:
        """Return `[N, K]`: where teacher t's score for class y is in the teachers' scores, -1 for none."""
        rows, start = [], 0
        for own in self.by_teacher.values():
            index = {name: start + offset for offset, name in enumerate(own)}
            rows.append([index.get(name, -1) for name in self.classes])
            start += len(own)
        return torch.tensor(rows, device=device)

    def _connected_teachers(self) -> list[tuple[str, ...]]:
        """Group the teachers that shared classes connect, directly or through other teachers."""
        groups: dict[tuple[str, ...], set[str]] = {}
        for teacher, own in self.by_teacher.items():
            # This teacher merges all groups that it shares a class with.
            joined = [group for group, classes in groups.items() if not classes.isdisjoint(own)]
            classes = set(own).union(*(groups.pop(group) for group in joined))
            groups[(*(member for group in joined for member in group), teacher)] = classes
        return list(groups)


def describe_overlap(label_sets: LabelSets) -> str | None:
    """Return a sentence on which classes are shared and what the rule does; None for disjoint label sets.

    >>> describe_overlap(LabelSets({"pets": ("cat", "dog"), "wild": ("wolf", "dog")}))
    "The label sets overlap: 'dog' (pets, wild). With scores.rule mean, the target score of a shared class \
is the mean over the teachers that know it."
    """
    overlap = label_sets.overlap
    if not overlap:
        return None
    rule = str(label_sets.rule)
    shared = _list_shared_classes(overlap)
    return f"The label sets overlap: {shared}. With scores.rule {rule}, {_RULE_EFFECTS[rule]}."


def _list_shared_classes(overlap: Mapping[str, tuple[str, ...]]) -> str:
    """List shared classes with their teachers; a long list is cut short."""
    parts = [f"{name!r} ({', '.join(teachers)})" for name, teachers in overlap.items()]
    more = f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else ""
    return ", ".join(parts[:MAX_LISTED]) + more


def softened_kl(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Compute ``T^2 KL(softmax(target / T) || softmax(scores / T))``, averaged over images.

    The factor T^2 keeps the size of the gradient independent of T (Hinton, Vinyals and Dean, 2015).

    Args:
        scores: `[B, K]`, the student's scores.
        target: `[B, K]`, the scores to match.
        temperature: T; 1 leaves both distributions as they are.
    """
    log_student = torch.log_softmax(scores / temperature, dim=1)
    log_target = torch.log_softmax(target / temperature, dim=1)
    divergence = functional.kl_div(log_student, log_target, reduction="batchmean", log_target=True)
    return temperature**2 * divergence
