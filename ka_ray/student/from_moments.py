"""One pass over the images, from which students of any widths are computed.

With codes that are channels, a layer learns from some of the stacked channels, activated, and should give
others of them: the moments of all stacked channels hold those of every choice.

Shapes: B images, S_l stacked channels of tap l, k_l values of one channel that one output of the layer behind
tap l sees, C_l channels that a student keeps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.numerics.channel_selection import LayerInputStats, order_channels
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.named_moments import NamedMoments
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, RIDGES, LayerSolution, solve
from ka_ray.student.families import FAMILIES
from ka_ray.student.linear_layers import ConvOrLinear, apply_solution, make_layer_samples
from ka_ray.student.network import Student, StudentSpec

PARTS = LEARNED_FROM, HELD_OUT_PART = "learned_from", "held_out"
"""The images that layers are solved on, and those that their ridge is chosen on."""

MAX_ROWS = 8192
"""Two sums of so many rows and columns take 1 GiB."""


@dataclass(frozen=True)
class LayerMoments:
    """Joint moments of what every layer would see of all stacked channels, and of what it should give.

    Attributes:
        spec: The student, with all S_l stacked channels at every tap.
        sums: From :class:`LayerMomentsMeter`: ``learned_from.TAP`` and, of the images to choose the ridge on,
            ``held_out.TAP``: moments of `[S_before * k_before + S]`.
    """

    spec: StudentSpec
    sums: NamedMoments

    def _joint(self, tap: str) -> Moments:
        return self.sums[f"{LEARNED_FROM}.{tap}"].merge(self.sums[f"{HELD_OUT_PART}.{tap}"])

    @cached_property
    def stacked(self) -> dict[str, Moments]:
        """tap -> moments of its stacked features, over all images and the positions that the layers gave."""
        found = {}
        for tap, channels in self.spec.widths.items():
            joint = self._joint(tap)
            found[tap] = joint.slice_channels(len(joint.mean) - channels, len(joint.mean))
        return found

    def next_layer_stats(self, tap: str) -> LayerInputStats:
        """What the layer behind a tap sees of all its stacked channels, and what it should give for them."""
        taps = [*self.spec.widths, SCORES]
        behind = taps[taps.index(tap) + 1]
        joint = self._joint(behind).covariance
        inputs = len(joint) - (len(self.spec.classes) if behind == SCORES else self.spec.widths[behind])
        return LayerInputStats(
            joint[:inputs, :inputs], joint[:inputs, inputs:], inputs // self.spec.widths[tap]
        )

    @cached_property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """tap -> all its stacked channels, those first that tell the next layer's targets best."""
        return {
            tap: order_channels(self.next_layer_stats(tap), stacked)
            for tap, stacked in self.spec.widths.items()
        }

    def with_channel_order(self) -> "LayerMoments":
        """Order all channels now, so that who gets this has their order with it."""
        _ = self.orders
        return self

    def student(
        self, widths: Mapping[str, int], ridges: Sequence[float] = RIDGES
    ) -> tuple[Student, dict[str, LayerSolution]]:
        """Compute a student; give also how each of its layers was solved.

        Args:
            widths: tap -> C_l, at most S_l.
            ridges: To choose from.
        """
        student = Student(replace(self.spec, widths=dict(widths))).eval()
        chosen = {tap: tuple(sorted(order[: widths[tap]])) for tap, order in self.orders.items()}
        solutions, before = {}, None
        for tap, stage in student.stages.items():
            places = self._places(tap, before, chosen)
            learned_from, held_out = (self.sums[f"{part}.{tap}"].select_channels(places) for part in PARTS)
            _, layer = only_layer(tap, stage)
            solutions[tap] = solve([learned_from], [held_out], len(layer.weight), ridges)
            apply_solution(solutions[tap], layer, None)
            before = tap
        return student, solutions

    def _places(self, tap: str, before: str | None, chosen: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Where the chosen inputs and outputs of a layer stand among all."""
        outputs = len(self.spec.classes) if tap == SCORES else self.spec.widths[tap]
        inputs = len(self.sums[f"{LEARNED_FROM}.{tap}"].mean) - outputs
        given = range(outputs) if tap == SCORES else chosen[tap]
        if before is None:
            return [*range(inputs), *(inputs + place for place in given)]
        num_values = inputs // self.spec.widths[before]
        taken = [channel * num_values + offset for channel in chosen[before] for offset in range(num_values)]
        return [*taken, *(inputs + place for place in given)]


def build_full_width_student(spec: StudentSpec, stacked: Mapping[str, int]) -> Student:
    """Build the student that keeps all S stacked channels at every tap.

    Raises:
        InputError: The student is of no family, a stage has more than one layer with weights, or the sums
            over what a layer sees would be too large.
    """
    if spec.network not in FAMILIES:
        raise InputError(
            f"student.network {spec.network!r}: only students of a family can have other widths; "
            f"there are {', '.join(FAMILIES)}"
        )
    whole = Student(replace(spec, widths=dict(stacked))).eval()
    for tap, stage in whole.stages.items():
        rows = num_rows(only_layer(tap, stage)[1])
        if rows > MAX_ROWS:
            raise InputError(
                f"taps: what leads to {tap} sees and gives {rows} values of all stacked channels; their sums "
                f"would take {rows**2 * 8 / 1024**3:.1f} GiB, one pass sums at most {MAX_ROWS} values"
            )
    return whole


def unsupported_reason(spec: StudentSpec, stacked: Mapping[str, int]) -> str | None:
    """Say why a student cannot be computed from the sums of one pass; None where it can."""
    try:
        build_full_width_student(spec, stacked)
    except InputError as error:
        return str(error)
    return None


def num_rows(layer: ConvOrLinear) -> int:
    """Count the values that a layer sees and gives at one position."""
    return layer.weight[0].numel() + len(layer.weight)


def only_layer(tap: str, stage: nn.Module) -> tuple[nn.Module, ConvOrLinear]:
    """Split a family's stage into what comes before its one layer, and the layer.

    Raises:
        InputError: It has more than one.
    """
    assert isinstance(stage, nn.Sequential)
    layers = [part for part in stage if isinstance(part, nn.Conv2d | nn.Linear)]
    if len(layers) > 1:
        raise InputError(f"taps: name every layer of the student; {len(layers)} lead to {tap}")
    return stage[:-1], layers[0]


class LayerMomentsMeter:
    """Adds batches up to a :class:`LayerMoments`, whose ``spec`` it has, too.

    Args:
        spec: The student, of any widths.
        stacked: tap -> S.
        positions_per_image: At most so many positions of each map count.
        held_out: On this share of the images the ridge is chosen.
        device: Where it is summed.

    Raises:
        InputError: See :func:`build_full_width_student`.
    """

    def __init__(
        self,
        spec: StudentSpec,
        stacked: Mapping[str, int],
        positions_per_image: int,
        held_out: float = HELD_OUT_FRACTION,
        device: torch.device | str = "cpu",
    ) -> None:
        self._whole = build_full_width_student(spec, stacked).to(device)
        self.spec = self._whole.spec
        self._layers = {tap: only_layer(tap, stage) for tap, stage in self._whole.stages.items()}
        sizes = {tap: num_rows(layer) for tap, (_, layer) in self._layers.items()}
        self._sums = {
            part: {tap: MomentsMeter(size, device) for tap, size in sizes.items()} for part in PARTS
        }
        self._positions, self._held_out, self._device = positions_per_image, held_out, device

    @property
    def total(self) -> NamedMoments:
        """What was added up, for a :class:`LayerMoments`."""
        return {
            f"{part}.{tap}": meter.total
            for part, meters in self._sums.items()
            for tap, meter in meters.items()
        }

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            batch: ``image [B, 3, H, W]``, all teachers' own ``scores``, each tap's stacked ``[B, S, *space]``
                and ``draws [B, 2]``: which positions count, and whether the image is held out.
        """
        batch = {name: column.to(self._device) for name, column in batch.items()}
        held_out = batch["draws"][:, 1] < self._held_out
        features = self._whole.preprocess(batch["image"])
        for tap, (before, layer) in self._layers.items():
            target = (
                self._whole.spec.unified_label_sets.amalgamate(batch[SCORES]) if tap == SCORES else batch[tap]
            )
            positions = sample_positions(batch["draws"][:, 0], math.prod(target.shape[2:]), self._positions)
            samples = make_layer_samples(layer, before(features), target, positions).flatten(2)
            for meters, chosen in zip(self._sums.values(), (~held_out, held_out), strict=True):
                meters[tap].add(samples[chosen].flatten(0, 1))
            features = target
