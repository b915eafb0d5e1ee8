"""What every gate can do, whether it was learned by this run or reused from a finished one.

Shapes: n images, N teachers, K classes of the union.
"""

from typing import Any, Protocol

from torch import Tensor

from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.gates.inputs import GateSample


class OwnerGate(Protocol):
    """Says which teacher's classes an image shows."""

    @property
    def label_sets(self) -> LabelSets:
        """The classes of the N teachers, and whether their scores are centred."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources whose features the gate sees."""

    def log_owners(self, sample: GateSample) -> Tensor:
        """Return log p(owner | image), `[n, N]`."""

    def nobody(self, sample: GateSample) -> Tensor | None:
        """Return the probability `[n]` that an image belongs to no teacher; None if that was not learned."""

    def amalgamate(self, sample: GateSample) -> Tensor:
        """Return the gated ensemble's scores `[n, K]`."""

    def to_state(self) -> dict[str, Tensor]:
        """Return the gate's tensors, to be saved beside :meth:`describe`."""

    def describe(self) -> dict[str, Any]:
        """Return what the tensors belong to, in types of JSON."""
