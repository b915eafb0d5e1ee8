"""A gate that was learned for some teachers, and is used after others have been added.

Shapes: n images, N teachers, the first M of which the learned gate knows, K_t classes of teacher t, K classes
of the union.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ka_ray.amalgamation.gated_scores import amalgamate_by_owner, compute_energies
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.errors import InputError
from ka_ray.gates.gate import Gate
from ka_ray.gates.inputs import GateSample

EXTENDS = "extends"
"""Key of :meth:`ExtendedGate.describe` with the description of the learned gate."""


@dataclass(frozen=True)
class ExtendedGate:
    """Divides by a learned gate what the ensemble gives to the first teachers together.

    ``p(t | image) = p(first M | image) p_gate(t | image, first M)``. The first factor, and p of each added
    teacher, are the ensemble's, the softmax of the energies (:func:`compute_energies`). So the gate compares
    only teachers that it was learned for, and the others get what they get without a gate.

    Whether an image belongs to nobody is not asked: to the gate, images of an added teacher's classes may
    look like those of no teacher.

    Attributes:
        label_sets: The classes of all N teachers, and whether their scores are centred.
        learned: The gate of the first M of them.
    """

    label_sets: LabelSets
    learned: Gate

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources whose features the learned gate sees."""
        return self.learned.sources

    def log_owners(self, sample: GateSample) -> Tensor:
        """Return log p(owner | image), `[n, N]`, on the device of the sample's scores.

        Raises:
            InputError: The sample lacks the features of a source.
        """
        first = self.learned.label_sets
        energies = compute_energies(self.label_sets, sample.scores.float())
        known, added = energies.tensor_split([len(first.by_teacher)], dim=1)
        seen = GateSample(sample.features, sample.scores[:, : first.num_scores])
        divided = known.logsumexp(dim=1, keepdim=True) + self.learned.log_owners(seen)
        return torch.cat([divided, added], dim=1).log_softmax(dim=1)

    def nobody(self, sample: GateSample) -> None:
        """Return None: it is not asked whether images belong to no teacher."""

    def amalgamate(self, sample: GateSample) -> Tensor:
        """Return the gated ensemble's scores `[n, K]`, see :func:`amalgamate_by_owner`."""
        return amalgamate_by_owner(self.label_sets, sample.scores, self.log_owners(sample))

    def to_state(self) -> dict[str, Tensor]:
        """Return the tensors of the learned gate, to be saved as safetensors beside :meth:`describe`."""
        return self.learned.to_state()

    def describe(self) -> dict[str, Any]:
        """Return what the tensors belong to, in types of JSON."""
        return {EXTENDS: self.learned.describe()}

    @staticmethod
    def from_state(
        state: Mapping[str, Tensor], description: Mapping[str, Any], label_sets: LabelSets
    ) -> "ExtendedGate":
        """Restore an extended gate, or extend a gate by the teachers that follow its own.

        An extended gate that is extended again still divides among the teachers that it was learned for:
        those added before and now are compared by their energies, in one step as in two.

        Args:
            state: What ``to_state`` of either gate returned.
            description: What ``describe`` of either gate returned.
            label_sets: Those of the run that uses the gate.

        Raises:
            InputError: The first teachers or their classes are not those that the gate was learned for, or
                the state is incomplete.
        """
        learned = description.get(EXTENDS, description)
        if not isinstance(learned, Mapping) or not isinstance(learned.get("teachers"), Mapping):
            raise InputError("the description of the gate is damaged; learn it again")
        first = dict(islice(label_sets.by_teacher.items(), len(learned["teachers"])))
        gate = Gate.from_state(state, learned, LabelSets(first, center=label_sets.center))
        return ExtendedGate(label_sets, gate)
