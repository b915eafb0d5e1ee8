"""Compute students of any widths from the moments that one pass over the images measures.

If each code consists of some of the stacked channels (``codes.basis: channels``), the inputs of a layer are
channels of one tap (after the activation) and its targets are channels of the next tap. The joint moments of
all stacked channels contain those of each choice of channels, so no student needs another pass.

Shapes: B images, S_l stacked channels of tap l, C_l channels of tap l that a student keeps, k_l inputs of the
next layer per channel of tap l, e.g. 9 for a 3x3 conv.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.numerics.channel_selection import LayerInputStats, order_channels
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.named_moments import NamedMoments
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, RIDGES, LayerSolution, solve
from ka_ray.student.families import FAMILIES, split_stage
from ka_ray.student.linear_layers import ConvOrLinear, apply_solution, make_layer_samples
from ka_ray.student.network import Student
from ka_ray.student.spec import StudentSpec

IMAGE_SETS = LEARNED_FROM, HELD_OUT = "learned_from", "held_out"
"""Prefixes of the moments' names: the images that layers are solved on, and those that choose their ridge."""

MAX_ROWS = 8192
"""Maximum number of rows of a layer's covariance matrix. The matrices of both image sets then take 1 GiB."""


@dataclass(frozen=True)
class LayerMoments:
    """Joint moments of inputs and targets of every layer, for all stacked channels.

    Attributes:
        spec: The student that keeps all S_l stacked channels at every tap.
        moments: Result of :class:`LayerMomentsMeter`: for every tap ``learned_from.TAP`` and
            ``held_out.TAP``, moments of `[n, S_before * k_before + S]` samples, the inputs and then the
            targets of the layer that leads to the tap.
    """

    spec: StudentSpec
    moments: NamedMoments

    def _joint(self, tap: str) -> Moments:
        """Merge the moments of both sets of images."""
        return self.moments[f"{LEARNED_FROM}.{tap}"].merge(self.moments[f"{HELD_OUT}.{tap}"])

    @cached_property
    def stacked_moments(self) -> dict[str, Moments]:
        """tap -> moments of its stacked features, over all images and sampled positions."""
        stacked = {}
        for tap, channels in self.spec.widths.items():
            joint = self._joint(tap)
            stacked[tap] = joint.slice_channels(len(joint.mean) - channels, len(joint.mean))
        return stacked

    def next_layer_stats(self, tap: str) -> LayerInputStats:
        """Return the statistics of the next layer's inputs, for all stacked channels of a tap."""
        taps = [*self.spec.widths, SCORES]
        next_tap = taps[taps.index(tap) + 1]
        # The samples of the layer after the tap begin with its inputs and end with its targets.
        joint = self._joint(next_tap).covariance
        inputs = len(joint) - (len(self.spec.classes) if next_tap == SCORES else self.spec.widths[next_tap])
        return LayerInputStats(
            joint[:inputs, :inputs], joint[:inputs, inputs:], inputs // self.spec.widths[tap]
        )

    @cached_property
    def channel_orders(self) -> dict[str, tuple[int, ...]]:
        """tap -> all its stacked channels, best first: the best predict most of the next layer's targets."""
        return {
            tap: order_channels(self.next_layer_stats(tap), stacked)
            for tap, stacked in self.spec.widths.items()
        }

    def with_channel_order(self) -> "LayerMoments":
        """Compute the order of the channels now, and return this object.

        The order is cached, so workers that get a copy of the object do not compute it again.
        """
        _ = self.channel_orders
        return self

    def compute_student(
        self, widths: Mapping[str, int], ridges: Sequence[float] = RIDGES
    ) -> tuple[Student, dict[str, LayerSolution]]:
        """Compute a student of the given widths.

        Args:
            widths: tap -> C_l, at most S_l.
            ridges: Candidates for the ridge, in units of the mean variance of an input.

        Returns:
            The student in eval mode, and tap -> solution of the layer that leads to the tap.
        """
        student = Student(replace(self.spec, widths=dict(widths))).eval()
        # Sorted, as `choose_channels` returns them, so the student fits codes of the same channels.
        chosen = {tap: tuple(sorted(order[: widths[tap]])) for tap, order in self.channel_orders.items()}
        solutions, previous = {}, None
        for tap, stage in student.stages.items():
            rows = self._chosen_rows(tap, previous, chosen)
            learned_from, held_out = (
                self.moments[f"{images}.{tap}"].select_channels(rows) for images in IMAGE_SETS
            )
            _, layer = split_stage(tap, stage)
            # Networks of a family have neither grouped convs (so one group) nor batch norms (so None).
            solutions[tap] = solve([learned_from], [held_out], len(layer.weight), ridges)
            apply_solution(solutions[tap], layer, None)
            previous = tap
        return student, solutions

    def _chosen_rows(self, tap: str, previous: str | None, kept: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Return the rows of the moments that belong to the chosen inputs and outputs of a layer.

        Args:
            tap: The tap that the layer leads to.
            previous: The tap before it; None for the first layer, whose input is the image.
            kept: tap -> the channels that the student keeps.
        """
        outputs = len(self.spec.classes) if tap == SCORES else self.spec.widths[tap]
        inputs = len(self.moments[f"{LEARNED_FROM}.{tap}"].mean) - outputs
        chosen_outputs = range(outputs) if tap == SCORES else kept[tap]
        output_rows = [inputs + channel for channel in chosen_outputs]
        if previous is None:
            return [*range(inputs), *output_rows]
        num_values = inputs // self.spec.widths[previous]  # k: the rows of one channel are adjacent
        input_rows = [channel * num_values + i for channel in kept[previous] for i in range(num_values)]
        return [*input_rows, *output_rows]


def build_full_width_student(spec: StudentSpec, stacked: Mapping[str, int]) -> Student:
    """Build the student that keeps all stacked channels at every tap.

    Args:
        spec: The student; its widths are replaced.
        stacked: tap -> number of stacked channels.

    Raises:
        InputError: The student is not of a family, a stage has more than one layer with weights, or the
            moments of a layer would be too large.
    """
    # Networks of a family can be built with any widths; the widths of other networks are fixed.
    if not spec.is_family:
        raise InputError(
            f"student.network {spec.network!r}: only codes of families ({', '.join(FAMILIES)}) have any width"
        )
    student = Student(replace(spec, widths=dict(stacked))).eval()
    for tap, stage in student.stages.items():
        rows = count_layer_values(split_stage(tap, stage)[1])
        if rows > MAX_ROWS:
            raise InputError(
                f"taps: with all stacked channels, the layer that leads to {tap} has {rows} inputs and "
                f"outputs; their covariance would take {rows**2 * 8 / 1024**3:.1f} GiB, and at most "
                f"{MAX_ROWS} inputs and outputs are supported"
            )
    return student


def unsupported_reason(spec: StudentSpec, stacked: Mapping[str, int]) -> str | None:
    """Return why a student cannot be computed from the moments of one pass; None if it can.

    Args:
        spec: The student, of any widths.
        stacked: tap -> number of stacked channels.
    """
    try:
        build_full_width_student(spec, stacked)
    except InputError as error:
        return str(error)
    return None


def count_layer_values(layer: ConvOrLinear) -> int:
    """Count the inputs and outputs of a layer at one position."""
    return layer.weight[0].numel() + len(layer.weight)


class LayerMomentsMeter:
    """Measures the moments of a :class:`LayerMoments` batch by batch.

    Args:
        spec: The student, of any widths.
        stacked: tap -> number of stacked channels.
        positions_per_image: Maximum number of positions that are sampled from each map.
        held_out: Fraction of the images that the ridge is chosen on.
        device: Device of the sums.

    Attributes:
        spec: The student that keeps all stacked channels, as :class:`LayerMoments` takes it.

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
        self._full_width = build_full_width_student(spec, stacked).to(device)
        self.spec = self._full_width.spec
        self._layers = {tap: split_stage(tap, stage) for tap, stage in self._full_width.stages.items()}
        sizes = {tap: count_layer_values(layer) for tap, (_, layer) in self._layers.items()}
        self._sums = {
            images: {tap: MomentsMeter(size, device) for tap, size in sizes.items()} for images in IMAGE_SETS
        }
        self._positions, self._held_out, self._device = positions_per_image, held_out, device

    @property
    def total(self) -> NamedMoments:
        """The moments of all batches added so far, as :class:`LayerMoments` takes them."""
        return {
            f"{images}.{tap}": meter.total
            for images, meters in self._sums.items()
            for tap, meter in meters.items()
        }

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            batch: ``image [B, 3, H, W]``; ``scores`` of all teachers side by side; for every tap its stacked
                features ``[B, S, *space]``; and ``draws [B, 2]``, random numbers in [0, 1) that decide which
                positions are sampled and whether the image is held out.
        """
        batch = {name: column.to(self._device) for name, column in batch.items()}
        # Each image has its own random number, so its batch and worker do not decide whether it is held out.
        held_out = batch["draws"][:, 1] < self._held_out
        features = self._full_width.preprocess(batch["image"])
        label_sets = self._full_width.spec.unified_label_sets
        for tap, (modules_before, layer) in self._layers.items():
            target = label_sets.amalgamate(batch[SCORES]) if tap == SCORES else batch[tap]
            positions = sample_positions(batch["draws"][:, 0], math.prod(target.shape[2:]), self._positions)
            samples = make_layer_samples(layer, modules_before(features), target, positions).flatten(2)
            for meters, chosen in zip(self._sums.values(), (~held_out, held_out), strict=True):
                meters[tap].add(samples[chosen].flatten(0, 1))
            # The next layer gets the code, not this layer's own output, so one pass serves all layers.
            features = target
