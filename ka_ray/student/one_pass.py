"""One pass over the images, from which students of any widths are computed.

With codes that are channels, a layer learns from some of the stacked channels, activated, and should give
others of them: the moments of all stacked channels hold those of every choice.

Shapes: B images, S_l stacked channels of tap l, k_l values of one channel that one output of the layer behind
tap l sees, C_l channels that a student keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Moments
from ka_ray.amalgamation.exact import choose_channels
from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.student.families import FAMILIES
from ka_ray.student.least_squares import (
    HELD_OUT,
    Layer,
    LeastSquares,
    install,
    layer_moments,
    patches,
    positions_of,
    solve,
)
from ka_ray.student.network import Student, StudentSpec


@dataclass(frozen=True)
class OnePass:
    """Joint moments of what every layer would see of all stacked channels, and of what it should give.

    Attributes:
        spec: The student, with all S_l stacked channels at every tap.
        learned_from: tap -> moments of `[S_before * k_before + S]`, of the images to solve on.
        held_out: tap -> the same of the images to choose the ridge on.
    """

    spec: StudentSpec
    learned_from: Mapping[str, Moments]
    held_out: Mapping[str, Moments]

    @staticmethod
    def start(spec: StudentSpec, stacked: Mapping[str, int]) -> "OnePass":
        """Make the moments of no images.

        Args:
            spec: The student, of any widths.
            stacked: tap -> S.

        Raises:
            InputError: The student is of no family, or a stage has more than one layer with weights.
        """
        if spec.network not in FAMILIES:
            raise InputError(
                f"student.network {spec.network!r}: only students of a family can have other widths; "
                f"there are {', '.join(FAMILIES)}"
            )
        whole = Student(replace(spec, widths=dict(stacked)))
        nothing = {}
        for tap, stage in whole.stages.items():
            weight = only_layer(tap, stage)[1].weight
            nothing[tap] = Moments.empty(weight[0].numel() + len(weight))
        return OnePass(whole.spec, nothing, dict(nothing))

    def merge(self, other: "OnePass") -> "OnePass":
        """Merge the passes over two disjoint sets of images."""
        return replace(
            self,
            learned_from={
                tap: part.merge(other.learned_from[tap]) for tap, part in self.learned_from.items()
            },
            held_out={tap: part.merge(other.held_out[tap]) for tap, part in self.held_out.items()},
        )

    @cached_property
    def stacked(self) -> dict[str, Moments]:
        """tap -> moments of its stacked features, over all images and the positions that the layers gave."""
        return {
            tap: self._targets(tap, self.learned_from[tap].merge(self.held_out[tap]))
            for tap in self.spec.widths
        }

    def _targets(self, tap: str, joint: Moments) -> Moments:
        size = len(joint.mean)
        return joint.part(size - self.spec.widths[tap], size)

    @cached_property
    def activated(self) -> dict[str, Tensor]:
        """tap -> covariance `[S, S]` of its stacked features as the layer behind sees them."""
        found = {}
        for tap, behind in zip(self.spec.widths, [*list(self.spec.widths)[1:], SCORES], strict=True):
            joint, channels = self.learned_from[behind].merge(self.held_out[behind]), self.spec.widths[tap]
            outputs = len(self.spec.classes) if behind == SCORES else self.spec.widths[behind]
            seen = joint.part(0, len(joint.mean) - outputs).covariance
            blocks = seen.unflatten(1, (channels, -1)).unflatten(0, (channels, -1))
            found[tap] = blocks.diagonal(dim1=1, dim2=3).mean(dim=2)
        return found

    def student(self, widths: Mapping[str, int]) -> tuple[Student, dict[str, LeastSquares]]:
        """Compute a student; give also how each of its layers was solved.

        Args:
            widths: tap -> C_l, at most S_l.
        """
        student = Student(replace(self.spec, widths=dict(widths))).eval()
        chosen = {tap: choose_channels(self.activated[tap], widths[tap]) for tap in self.spec.widths}
        solutions, before = {}, None
        for tap, stage in student.stages.items():
            places = self._places(tap, before, chosen)
            learned_from, held_out = (sums[tap].at(places) for sums in (self.learned_from, self.held_out))
            _, layer = only_layer(tap, stage)
            solutions[tap] = solve([learned_from], [held_out], num_outputs=len(layer.weight))
            install(solutions[tap], layer, None)
            before = tap
        return student, solutions

    def _places(self, tap: str, before: str | None, chosen: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Where the chosen inputs and outputs of a layer stand among all."""
        outputs = len(self.spec.classes) if tap == SCORES else self.spec.widths[tap]
        inputs = len(self.learned_from[tap].mean) - outputs
        given = range(outputs) if tap == SCORES else chosen[tap]
        if before is None:
            return [*range(inputs), *(inputs + place for place in given)]
        seen = inputs // self.spec.widths[before]
        taken = [channel * seen + offset for channel in chosen[before] for offset in range(seen)]
        return [*taken, *(inputs + place for place in given)]


def only_layer(tap: str, stage: nn.Module) -> tuple[nn.Module, Layer]:
    """Split a family's stage into what comes before its one layer, and the layer.

    Raises:
        InputError: It has more than one.
    """
    assert isinstance(stage, nn.Sequential)
    layers = [part for part in stage if isinstance(part, nn.Conv2d | nn.Linear)]
    if len(layers) > 1:
        raise InputError(f"taps: name every layer of the student; {len(layers)} lead to {tap}")
    return stage[:-1], layers[0]


class OnePassMeter:
    """Adds batches up to a :class:`OnePass`.

    Args:
        spec: The student, of any widths.
        stacked: tap -> S.
        positions_per_image: At most so many positions of each map count.
        held_out: On this share of the images the ridge is chosen.
    """

    def __init__(
        self, spec: StudentSpec, stacked: Mapping[str, int], positions_per_image: int, held_out: float = HELD_OUT
    ) -> None:
        self.total = OnePass.start(spec, stacked)
        self._whole = Student(self.total.spec).eval()
        self._layers = {tap: only_layer(tap, stage) for tap, stage in self._whole.stages.items()}
        self._positions, self._held_out = positions_per_image, held_out

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            batch: ``image [B, 3, H, W]``, all teachers' own ``scores``, each tap's stacked ``[B, S, *space]``
                and ``draws [B, 2]``: which positions count, and whether the image is held out.
        """
        parts = self.total.learned_from, self.total.held_out
        sums = [dict(part) for part in parts]
        held_out = batch["draws"][:, 1] < self._held_out
        features = self._whole.preprocess(batch["image"])
        for tap, (before, layer) in self._layers.items():
            seen = patches(layer, before(features))
            positions = positions_of(batch["draws"][:, 0], seen.shape[1], self._positions)
            target = self._whole.spec.unified.amalgamate(batch[SCORES]) if tap == SCORES else batch[tap]
            for total, chosen in zip(sums, (~held_out, held_out), strict=True):
                if chosen.any():
                    (moments,) = layer_moments(seen[chosen], target[chosen], positions[chosen])
                    total[tap] = total[tap].merge(moments)
            features = target
        self.total = replace(self.total, learned_from=sums[0], held_out=sums[1])
