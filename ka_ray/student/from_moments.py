"""Compute students of any widths from moments (means and covariances) that one pass over the images measures.

If codes are selected channels (``codes.basis: channels``), the inputs of a layer are some of the stacked
channels (after the activation), and its targets are some channels of the next tap. The joint moments of all
channels contain those of every selection, so no student needs another pass.

Shapes: B images, S_l stacked channels of tap l, C_l channels of tap l that a student keeps, k_l inputs per
channel of tap l at one output position of the next layer, e.g. 9 if that layer is a 3x3 conv.
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
from ka_ray.student.network import Student, StudentSpec

IMAGE_SETS = LEARNED_FROM, HELD_OUT = "learned_from", "held_out"
"""Prefixes of the moments' names: the images on which layers are solved, and those that choose the ridge."""

MAX_ROWS = 8192
"""Maximum number of rows of a layer's covariance matrix; one per set of images, two of them take 1 GiB."""


@dataclass(frozen=True)
class LayerMoments:
    """Joint moments of inputs and targets of every layer, for all stacked channels.

    Attributes:
        spec: The student that keeps all S_l stacked channels at every tap.
        moments: Result of :class:`LayerMomentsMeter`. For every tap, ``learned_from.TAP`` and
            ``held_out.TAP`` are the moments of n samples `[n, S_before * k_before + S]`: the inputs, then the
            targets, of the layer that computes the tap.
    """

    spec: StudentSpec
    moments: NamedMoments

    def _joint(self, tap: str) -> Moments:
        """Merge the moments of both sets of images."""
        return self.moments[f"{LEARNED_FROM}.{tap}"].merge(self.moments[f"{HELD_OUT}.{tap}"])

    @cached_property
    def stacked_moments(self) -> dict[str, Moments]:
        """tap -> moments of its stacked features, over all images and sampled positions."""
        stacked_moments = {}
        for tap, channels in self.spec.widths.items():
            joint = self._joint(tap)
            stacked_moments[tap] = joint.slice_channels(len(joint.mean) - channels, len(joint.mean))
        return stacked_moments

    def next_layer_stats(self, tap: str) -> LayerInputStats:
        """Return the statistics of the next layer's inputs, for all stacked channels of a tap."""
        taps = [*self.spec.widths, SCORES]
        next_tap = taps[taps.index(tap) + 1]
        # Each sample of the layer after the tap holds the layer's inputs, then its targets.
        joint = self._joint(next_tap).covariance
        inputs = len(joint) - (len(self.spec.classes) if next_tap == SCORES else self.spec.widths[next_tap])
        return LayerInputStats(
            joint[:inputs, :inputs], joint[:inputs, inputs:], inputs // self.spec.widths[tap]
        )

    @cached_property
    def channel_orders(self) -> dict[str, tuple[int, ...]]:
        """tap -> all its stacked channels; those that predict the next layer's targets best come first."""
        return {
            tap: order_channels(self.next_layer_stats(tap), num_channels)
            for tap, num_channels in self.spec.widths.items()
        }

    def with_channel_order(self) -> "LayerMoments":
        """Compute and cache :attr:`channel_orders`, and return this object.

        A copy that is sent to a worker contains the cached value, so workers do not compute it again.
        """
        _ = self.channel_orders
        return self

    def compute_student(
        self, widths: Mapping[str, int], ridges: Sequence[float] = RIDGES
    ) -> tuple[Student, dict[str, LayerSolution]]:
        """Compute a student of the given widths.

        Args:
            widths: tap -> C_l, at most S_l.
            ridges: Candidates for the ridge penalty, in units of the mean variance of an input.

        Returns:
            The student in eval mode, and tap -> solution of the layer that computes the tap.
        """
        student = Student(replace(self.spec, widths=dict(widths))).eval()
        # Ascending, as in `choose_channels`, so that channel i of the student is channel i of its code.
        chosen = {tap: tuple(sorted(order[: widths[tap]])) for tap, order in self.channel_orders.items()}
        solutions, before = {}, None
        for tap, stage in student.stages.items():
            rows = self._chosen_rows(tap, before, chosen)
            learned_from, held_out = (
                self.moments[f"{images}.{tap}"].select_channels(rows) for images in IMAGE_SETS
            )
            _, layer = split_stage(tap, stage)
            # A student of a family has no grouped convs (so one group) and no batch norms (so None below).
            solutions[tap] = solve([learned_from], [held_out], len(layer.weight), ridges)
            apply_solution(solutions[tap], layer, None)
            before = tap
        return student, solutions

    def _chosen_rows(self, tap: str, before: str | None, chosen: Mapping[str, tuple[int, ...]]) -> list[int]:
        """Return the rows of the moments that belong to the chosen inputs and outputs of a layer.

        Args:
            tap: The tap that the layer computes.
            before: The previous tap, the layer's input; None for the first layer, whose input is the image.
            chosen: tap -> the channels that the student keeps.
        """
        outputs = len(self.spec.classes) if tap == SCORES else self.spec.widths[tap]
        inputs = len(self.moments[f"{LEARNED_FROM}.{tap}"].mean) - outputs
        chosen_outputs = range(outputs) if tap == SCORES else chosen[tap]
        output_rows = [inputs + channel for channel in chosen_outputs]
        if before is None:
            return [*range(inputs), *output_rows]
        num_values = inputs // self.spec.widths[before]  # k_l; the rows of one channel are adjacent
        input_rows = [channel * num_values + i for channel in chosen[before] for i in range(num_values)]
        return [*input_rows, *output_rows]


def build_full_width_student(spec: StudentSpec, stacked: Mapping[str, int]) -> Student:
    """Build the student that keeps all stacked channels at every tap.

    Args:
        spec: The student; its widths are ignored.
        stacked: tap -> number of stacked channels.

    Raises:
        InputError: The student's network is not one of ``FAMILIES``, a stage has more than one layer with
            weights, or the moments of a layer would be too large.
    """
    if spec.network not in FAMILIES:
        raise InputError(
            f"student.network {spec.network!r}: only the students of a family can have other widths; "
            f"the families are {', '.join(FAMILIES)}"
        )
    student = Student(replace(spec, widths=dict(stacked))).eval()
    for tap, stage in student.stages.items():
        rows = count_layer_values(split_stage(tap, stage)[1])
        if rows > MAX_ROWS:
            raise InputError(
                f"taps: with all stacked channels, the layer that computes {tap} has {rows} inputs and "
                f"outputs; their covariance would take {rows**2 * 8 / 1024**3:.1f} GiB, and at most "
                f"{MAX_ROWS} inputs and outputs are supported"
            )
    return student


def unsupported_reason(spec: StudentSpec, stacked: Mapping[str, int]) -> str | None:
    """Return why a student cannot be computed from the moments of one pass; None if it can.

    Args:
        spec: The student; its widths are ignored.
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
        spec: The student; its widths are ignored.
        stacked: tap -> number of stacked channels.
        positions_per_image: Maximum number of positions that are sampled from each feature map.
        held_out: Fraction of the images that are used only to choose the ridge.
        device: Device on which the sums are accumulated.

    Attributes:
        spec: The student that keeps all stacked channels, for :class:`LayerMoments`.

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
        """The moments of all batches added so far, for :class:`LayerMoments`."""
        return {
            f"{images}.{tap}": meter.total
            for images, meters in self._sums.items()
            for tap, meter in meters.items()
        }

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            batch: ``image [B, 3, H, W]``; ``scores [B, K]`` of all teachers, concatenated; for every tap its
                stacked features ``[B, S, *space]``; and ``draws [B, 2]``, random numbers in [0, 1): the first
                one decides which positions are sampled, the second one whether the image is held out.
        """
        batch = {name: column.to(self._device) for name, column in batch.items()}
        # The random number belongs to the image, so any batch size and any worker holds out the same images.
        held_out = batch["draws"][:, 1] < self._held_out
        features = self._full_width.preprocess(batch["image"])
        label_sets = self._full_width.spec.unified_label_sets
        for tap, (before, layer) in self._layers.items():
            target = label_sets.amalgamate(batch[SCORES]) if tap == SCORES else batch[tap]
            positions = sample_positions(batch["draws"][:, 0], math.prod(target.shape[2:]), self._positions)
            samples = make_layer_samples(layer, before(features), target, positions).flatten(2)
            for meters, chosen in zip(self._sums.values(), (~held_out, held_out), strict=True):
                meters[tap].add(samples[chosen].flatten(0, 1))
            # The next layer's input is the teachers' features, not this layer's output: no layer has to wait.
            features = target
