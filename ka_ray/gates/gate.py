"""A gate: the probability that an image belongs to each teacher.

Shapes: n images, N teachers, D features of all sources, C classes of all teachers, listed teacher by teacher,
and one more if the gate learned from images of nobody.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ka_ray.amalgamation.gated_scores import amalgamate_by_owner, compute_energies
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.inputs import GateSample, InputScaling
from ka_ray.gates.owner_gate import OwnerGate
from ka_ray.numerics.logistic_regression import pool_logits

TENSORS = ("mean", "scale", "weight", "bias", "score_scale")
"""Names of a gate's tensors in its state dict."""

NOBODY_THRESHOLD = 0.5
"""Probability of belonging to no teacher above which an image is left out."""

DOUBT = 1e-3
"""Probability that a known owner leaves for the other teachers, so that its logarithm stays finite."""


@dataclass(frozen=True)
class Gate:
    """Corrects every score of the teachers linearly in the features, and sums over the classes of a teacher.

    ``p(owner t | image)`` is the softmax over the teachers of ``log sum_c exp(scale_t score_c + (inputs @
    weight + bias)_c)``, c the classes of teacher t. With a scale of 1 and weights of 0 it is the p(owner) of
    the ensemble, see :func:`compute_energies`: a gate that learned little changes little. Features tell
    classes linearly, but seldom whether an image belongs to any of five classes; hence a weight per class.
    ``p(class | owner)`` stays that of the teacher.

    Attributes:
        label_sets: The teachers' classes, and whether their scores are centred.
        scaling: Makes the inputs out of features.
        weight: `[D, C]`.
        bias: `[C]`.
        score_scale: `[C]`, factor of each score.
        learned_from: ``hints``, ``self``, or ``nothing`` for a gate of the scores alone.
    """

    label_sets: LabelSets
    scaling: InputScaling
    weight: Tensor
    bias: Tensor
    score_scale: Tensor
    learned_from: str

    @staticmethod
    def of_scores(label_sets: LabelSets) -> "Gate":
        """Return the gate that is in the scores already: features play no part.

        Args:
            label_sets: The teachers' classes, and whether their scores are centred.
        """
        classes, nothing = label_sets.num_scores, torch.zeros(0)
        weight, bias, scale = torch.zeros(0, classes), torch.zeros(classes), torch.ones(classes)
        return Gate(label_sets, InputScaling((), nothing, nothing), weight, bias, scale, "nothing")

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources whose features the gate sees."""
        return self.scaling.sources

    def log_owners(self, sample: GateSample) -> Tensor:
        """Return log p(owner | image), `[n, N]`, on the device of the sample's scores.

        Raises:
            InputError: The sample lacks the features of a source.
        """
        return self._logits(sample)[:, : len(self.label_sets.by_teacher)].log_softmax(dim=1)

    def nobody(self, sample: GateSample) -> Tensor | None:
        """Return the probability `[n]` that an image belongs to no teacher; None if the gate saw none."""
        logits, teachers = self._logits(sample), len(self.label_sets.by_teacher)
        return logits.softmax(dim=1)[:, teachers] if logits.shape[1] > teachers else None

    def _logits(self, sample: GateSample) -> Tensor:
        missing = [source for source in self.sources if source not in sample.features]
        if missing:
            raise InputError(f"the gate needs features of {', '.join(missing)}, which were not read")
        scores, sizes = list_class_scores(self.label_sets, sample.scores, self.weight.shape[1])
        logits = scores * self.score_scale.to(scores) + self.bias.to(scores)
        if self.sources:
            logits = logits + self.scaling(sample.features) @ self.weight.to(scores)
        return pool_logits(logits, sizes)

    def amalgamate(self, sample: GateSample) -> Tensor:
        """Return the gated ensemble's scores `[n, K]`, see :func:`amalgamate_by_owner`."""
        return amalgamate_by_owner(self.label_sets, sample.scores, self.log_owners(sample))

    def to_state(self) -> dict[str, Tensor]:
        """Return the gate's tensors on the CPU, to be saved as safetensors beside :meth:`describe`."""
        tensors = (self.scaling.mean, self.scaling.scale, self.weight, self.bias, self.score_scale)
        return {
            name: tensor.detach().cpu().contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)
        }

    def describe(self) -> dict[str, Any]:
        """Return what the tensors belong to, in types of JSON."""
        return {
            "teachers": {name: list(classes) for name, classes in self.label_sets.by_teacher.items()},
            "center": self.label_sets.center,
            "sources": list(self.sources),
            "learned_from": self.learned_from,
        }

    @staticmethod
    def from_state(
        state: Mapping[str, Tensor], description: Mapping[str, Any], label_sets: LabelSets
    ) -> "Gate":
        """Restore a gate.

        Args:
            state: What :meth:`to_state` returned.
            description: What :meth:`describe` returned.
            label_sets: Those of the run that uses the gate.

        Raises:
            InputError: The gate was learned for other teachers or classes, or the state is incomplete.
        """
        try:
            teachers = {name: tuple(classes) for name, classes in description["teachers"].items()}
            sources, center = tuple(map(str, description["sources"])), description["center"]
            learned_from = str(description["learned_from"])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the description of the gate is damaged ({error}); learn it again") from None
        # Lists, because dicts are equal in any order.
        if [*teachers.items()] != [*label_sets.by_teacher.items()] or center != label_sets.center:
            raise InputError(
                f"the gate was learned for the teachers {', '.join(teachers)} with other classes, order or "
                "centring than those of this run; learn it again"
            )
        absent = [name for name in TENSORS if name not in state]
        if absent:
            raise InputError(f"the gate's file lacks {', '.join(absent)}; learn the gate again")
        scaling = InputScaling(sources, state["mean"], state["scale"])
        learned = (state["weight"], state["bias"], state["score_scale"])
        return Gate(label_sets, scaling, *learned, learned_from)


def believe_owners(log_owners: Tensor, owners: Tensor) -> Tensor:
    """Return log p(owner | image) in which known owners stand instead of what a gate says.

    Args:
        log_owners: `[n, N]`, log p(owner | image).
        owners: `[n]` integers, the index of each image's teacher, negative where it is not known. N: the
            image is known to belong to nobody, so that nothing is believed of its teachers.

    Returns:
        `[n, N]`; a known owner has all but :data:`DOUBT`, which the other teachers share equally.
    """
    teachers = log_owners.shape[1]
    known = (owners >= 0) & (owners < teachers)
    told = torch.full_like(log_owners[known], DOUBT / max(1, teachers - 1))
    told.scatter_(1, owners[known, None].to(log_owners.device), 1 - DOUBT)
    believed = log_owners.clone()
    believed[known] = told.log()
    return believed


def believe_nobody(nobody: Tensor | None, owners: Tensor, teachers: int) -> Tensor:
    """Return the probability `[n]` that an image belongs to nobody, in which known owners are believed.

    Args:
        nobody: `[n]`, the probability that a gate gives; None if it never saw an image of nobody.
        owners: `[n]` integers, see :func:`believe_owners`.
        teachers: N.
    """
    given = torch.zeros(len(owners)) if nobody is None else nobody.float()
    return given.where(owners < 0, (owners == teachers).to(given))


def list_class_scores(
    label_sets: LabelSets, teacher_scores: Tensor, num_classes: int
) -> tuple[Tensor, list[int]]:
    """Return the scores of all classes as a gate corrects them, and how many belong to each owner.

    Args:
        label_sets: The teachers' classes, and whether their scores are centred first.
        teacher_scores: `[n, sum of K_t]`.
        num_classes: C; one more than there are scores adds a score of 0, that of nobody's images.

    Returns:
        `[n, C]` in float32, and the number of classes of each teacher, and of nobody.
    """
    parts = label_sets.split(teacher_scores.float())
    if label_sets.center:
        parts = [part - part.mean(dim=1, keepdim=True) for part in parts]
    if num_classes > label_sets.num_scores:
        parts = [*parts, torch.zeros_like(parts[0][:, :1])]
    return torch.cat(parts, dim=1), [part.shape[1] for part in parts]


def measure_owner_changes(gate: OwnerGate, sample: GateSample, owners: Tensor) -> float:
    """Return the share of images whose most probable owner is another one than by the scores alone.

    Images of nobody change to no owner, so they do not count.

    Args:
        gate: The gate.
        sample: The images, n of them.
        owners: `[n]`, their known owners, see :func:`believe_owners`.
    """
    before = compute_energies(gate.label_sets, sample.scores.float()).argmax(dim=1)
    after = believe_owners(gate.log_owners(sample), owners).argmax(dim=1)
    nobody = believe_nobody(gate.nobody(sample), owners, len(gate.label_sets.by_teacher))
    changed = (after != before) & (nobody <= NOBODY_THRESHOLD)
    return float(changed.double().mean())
