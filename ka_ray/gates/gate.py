"""A gate: the probability that an image belongs to each teacher.

Shapes: n images, N teachers, D features of all sources.
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

TENSORS = ("mean", "scale", "weight", "bias", "energy_scale")
"""Names of a gate's tensors in its state dict."""


@dataclass(frozen=True)
class Gate:
    """log p(owner | image) is linear in the features, on top of what the ensemble says already.

    ``p(owner | image) = softmax(energy_scale * energies + inputs @ weight + bias)``. With a scale of 1 and
    weights of 0 it is the p(owner) of the ensemble, see :func:`compute_energies`: a gate that learned little
    changes little.

    Attributes:
        label_sets: The teachers' classes, and whether their scores are centred.
        scaling: Makes the inputs out of features.
        weight: `[D, N]`, or `[D, N + 1]` if it learned from images of nobody.
        bias: `[N]` or `[N + 1]`.
        energy_scale: `[N]`, factor of each teacher's energy.
        learned_from: ``known``, ``hints`` or ``self``, for reports.
    """

    label_sets: LabelSets
    scaling: InputScaling
    weight: Tensor
    bias: Tensor
    energy_scale: Tensor
    learned_from: str

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
        missing = [source for source in self.scaling.sources if source not in sample.features]
        if missing:
            raise InputError(f"the gate needs features of {', '.join(missing)}, which were not read")
        inputs = self.scaling(sample.features)
        logits = inputs @ self.weight.to(inputs) + self.bias.to(inputs)
        energies = compute_energies(self.label_sets, sample.scores.float()) * self.energy_scale.to(inputs)
        return torch.cat([logits[:, : energies.shape[1]] + energies, logits[:, energies.shape[1] :]], dim=1)

    def amalgamate(self, sample: GateSample) -> Tensor:
        """Return the gated ensemble's scores `[n, K]`, see :func:`amalgamate_by_owner`."""
        return amalgamate_by_owner(self.label_sets, sample.scores, self.log_owners(sample))

    def to_state(self) -> dict[str, Tensor]:
        """Return the gate's tensors on the CPU, to be saved as safetensors beside :meth:`describe`."""
        tensors = (self.scaling.mean, self.scaling.scale, self.weight, self.bias, self.energy_scale)
        return {
            name: tensor.detach().cpu().contiguous() for name, tensor in zip(TENSORS, tensors, strict=True)
        }

    def describe(self) -> dict[str, Any]:
        """Return what the tensors belong to, in types of JSON."""
        return {
            "teachers": {name: list(classes) for name, classes in self.label_sets.by_teacher.items()},
            "center": self.label_sets.center,
            "sources": list(self.scaling.sources),
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
        teachers = {name: tuple(classes) for name, classes in description["teachers"].items()}
        if teachers != dict(label_sets.by_teacher) or description["center"] != label_sets.center:
            raise InputError(
                f"the gate was learned for the teachers {', '.join(teachers)} with other classes, order or "
                "centring than those of this run; learn it again"
            )
        absent = [name for name in TENSORS if name not in state]
        if absent:
            raise InputError(f"the gate's file lacks {', '.join(absent)}; learn the gate again")
        mean, scale, *rest = (state[name] for name in TENSORS)
        scaling = InputScaling(tuple(description["sources"]), mean, scale)
        return Gate(label_sets, scaling, *rest, str(description["learned_from"]))


def measure_owner_changes(gate: Gate, sample: GateSample) -> float:
    """Return the share of images whose most probable owner is another one with the gate than without."""
    before = compute_energies(gate.label_sets, sample.scores.float()).argmax(dim=1)
    return float((gate.log_owners(sample).argmax(dim=1) != before).double().mean())
