"""Solve layers of the student by least squares, from sums over the images, instead of training them.

Shapes: B images, S stacked channels, C code channels.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.config import LayersConfig
from ka_ray.features.layouts import Layout
from ka_ray.features.stack import SCORES
from ka_ray.numerics.conjugate_gradient import DEFAULT_RIDGE, solve_iteratively
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, RIDGES, LayerSolution, solve
from ka_ray.student import Student
from ka_ray.student.batch_norms import Norm
from ka_ray.student.linear_layers import (
    ConvOrLinear,
    apply_solution,
    capture_layer_input,
    find_solvable_layer,
    make_layer_samples,
)
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, ProgressCallback


class LayerSolver:
    """Solver of all layers of a student that are linear in their weights. All ranks get the same solutions.

    Args:
        student: Student whose layers are set in place.
        encoders: Tap name -> :class:`ka_ray.amalgamation.Amalgamation`, whose codes are inputs and targets.
        config: Section `layers` of the config.
        batches: Function from column names to batches, with :data:`NUM_SOLVER_DRAWS` random numbers per image
            in the column ``draws``: the first chooses positions, the second whether the image is held out.
        report: Called with progress reports; see :func:`ka_ray.training.fit.fit`.
    """

    def __init__(
        self,
        student: Student,
        encoders: nn.ModuleDict,
        config: LayersConfig,
        batches: Callable[[list[str]], Batches],
        report: ProgressCallback,
    ) -> None:
        self.student, self.encoders, self.config = student.eval(), encoders.eval(), config
        self._batches, self._report = batches, report
        # Tap name -> its layer, with the batch norm behind it if there is one.
        self._solvable = _solvable_layers(student)
        self._ridges = RIDGES if config.ridge is None else (config.ridge,)
        self._began = time.perf_counter()

    @torch.no_grad()
    def solve(self) -> tuple[dict[str, LayerSolution], list[Progress]]:
        """Solve all layers that can be solved.

        Returns:
            Tap name -> solution of its layer, and one record per group of layers that were solved together.
        """
        if not self._solvable:
            return {}, []
        # From codes, all layers are solved in one pass. From the student's own features, layer after layer,
        # since each solution changes the features that the next layer receives.
        from_codes = self.config.inputs == "codes"
        groups = [list(self._solvable)] if from_codes else [[tap] for tap in self._solvable]
        solutions: dict[str, LayerSolution] = {}
        history = []
        for number, taps in enumerate(groups, start=1):
            # Taps whose codes are inputs of the next layer, in place of the student's own features.
            feeding = [tap for tap in self.student.stages if from_codes or tap not in self._solvable]
            batches = self._batches(["image", *dict.fromkeys([*taps, *feeding])])
            solutions |= self._solve_layers(taps, batches)
            losses = {tap: solutions[tap].relative_error for tap in taps}
            # Each group passes over all images. In the report, all groups together count as one pass.
            images = len(batches.rows) * number // len(groups)
            seconds = time.perf_counter() - self._began
            # Each group is reported as an epoch of a single step.
            history.append(
                Progress(
                    stage="layers",
                    epoch=number,
                    epochs=len(groups),
                    step=1,
                    steps=1,
                    images=images,
                    seconds=seconds,
                    losses=losses,
                )
            )
            self._report(history[-1])
        return solutions, history

    def _solve_layers(self, taps: Sequence[str], batches: Batches) -> dict[str, LayerSolution]:
        """Solve layers from one pass over the images, and write the solutions into the student."""
        small = [tap for tap in taps if gram_size_gib(self._layer(tap)) <= self.config.max_gram_gib]
        solutions = {
            tap: solve(*sums, self._num_outputs(tap), self._ridges)
            for tap, sums in self._moments(small, batches).items()
        }
        for tap in taps:
            if tap not in solutions:
                solutions[tap] = self._solve_iteratively(tap, batches)
            apply_solution(solutions[tap], *self._solvable[tap])
        return solutions

    def _moments(
        self, taps: Sequence[str], batches: Batches
    ) -> dict[str, tuple[list[Moments], list[Moments]]]:
        """Return, per tap and group of its layer, the moments of the images to fit and of those held out."""
        # Per tap the pair (meters of images to fit, meters of held-out images), indexed by `held_out`.
        sums = {tap: (self._meters(tap, batches.device), self._meters(tap, batches.device)) for tap in taps}
        for tap, held_out, samples in self._samples(taps, batches) if taps else ():
            for meter, group in zip(sums[tap][held_out], samples.unbind(dim=1), strict=True):
                meter.add(group)
        return {tap: (_over_ranks(fitted), _over_ranks(held)) for tap, (fitted, held) in sums.items()}

    def _samples(self, taps: Sequence[str], batches: Batches) -> Iterator[tuple[str, bool, Tensor]]:
        """Yield tap, whether the images are held out, and their samples, in one pass over the images."""
        for batch in batches.single_pass():
            # Whole images are held out, because positions of one image are too similar for a fair test.
            held_out = batch["draws"][:, 1] < HELD_OUT_FRACTION
            for tap, features, targets in self._inputs_and_targets(batch, taps):
                available, wanted = math.prod(targets.shape[2:]), self.config.positions_per_image
                positions = sample_positions(batch["draws"][:, 0], available, wanted)
                samples = make_layer_samples(self._layer(tap), features, targets, positions)
                for held, mask in ((False, ~held_out), (True, held_out)):
                    yield tap, held, samples[mask].flatten(0, 1)

    def _solve_iteratively(self, tap: str, batches: Batches) -> LayerSolution:
        """Solve one layer by conjugate gradients, which need many passes but no Gram matrix."""

        def stream() -> Iterator[tuple[bool, Tensor]]:
            return ((held, samples) for _, held, samples in self._samples([tap], batches))

        groups, inputs = count_groups(self._layer(tap)), self._layer(tap).weight[0].numel()
        sizes, ridge = (inputs, self._num_outputs(tap)), self.config.ridge or DEFAULT_RIDGE
        solution, _ = solve_iteratively(stream, groups, *sizes, batches.device, ridge)
        return solution

    def _num_outputs(self, tap: str) -> int:
        return len(self._layer(tap).weight) // count_groups(self._layer(tap))

    def _meters(self, tap: str, device: torch.device) -> list[MomentsMeter]:
        # Inputs and outputs side by side: their joint moments contain the Gram matrix and the right-hand
        # side.
        size = self._layer(tap).weight[0].numel() + self._num_outputs(tap)
        return [MomentsMeter(size, device) for _ in range(count_groups(self._layer(tap)))]

    def _layer(self, tap: str) -> ConvOrLinear:
        return self._solvable[tap][0]

    def _inputs_and_targets(
        self, batch: Mapping[str, Tensor], taps: Sequence[str]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield tap, input of its layer and target, in the order of the student's stages."""
        features = self.student.preprocess(batch["image"])
        for tap, stage in self.student.stages.items():
            if tap in taps:
                yield tap, capture_layer_input(self._layer(tap), stage, features), self._target(tap, batch)
                if tap == taps[-1]:
                    return
            # A stage that cannot be solved still has random weights, so the code replaces its output.
            solved = self.config.inputs == "student" and tap in self._solvable
            if solved:
                features = stage(features)
            elif tap != SCORES:
                layout, code = self.student.layouts[tap], self._target(tap, batch)
                # No solvable stage follows a tap with tokens that have no code, see :func:`_solvable_layers`.
                features = code if layout.has_rest else layout.join(code, None)

    def _target(self, tap: str, batch: Mapping[str, Tensor]) -> Tensor:
        if tap == SCORES:
            return self.student.spec.unified_label_sets.amalgamate(batch[SCORES])
        return cast(Amalgamation, self.encoders[tap]).encode(batch[tap])


def count_groups(layer: ConvOrLinear) -> int:
    """Return the number of groups of a layer. A linear layer has one."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def gram_size_gib(layer: ConvOrLinear) -> float:
    """Return the size in GiB of a layer's Gram matrices of inputs and targets, one per group, in float64."""
    groups = count_groups(layer)
    return groups * (layer.weight[0].numel() + len(layer.weight) // groups) ** 2 * 8 / 1024**3


def describe_gram_sizes(student: Student, config: LayersConfig) -> str | None:
    """Describe the sizes of the Gram matrices, for a note at the start of a run.

    Args:
        student: Student whose layers are to be solved.
        config: Section `layers` of the config.

    Returns:
        The note, which also names the layers that are solved without a Gram matrix. None: no layer is solved.
    """
    sizes = {tap: gram_size_gib(layer) for tap, (layer, _) in _solvable_layers(student).items()}
    if config.solver != "least_squares" or not sizes:
        return None
    named = ", ".join(
        f"{tap} {1024 * size:.3g} MiB{'' if size <= config.max_gram_gib else ' (by conjugate gradients)'}"
        for tap, size in sizes.items()
    )
    return f"layers: Gram matrices: {named}"


def _solvable_layers(student: Student) -> dict[str, tuple[ConvOrLinear, Norm | None]]:
    """Return, per tap, the layer that is linear in its weights, and the batch norm behind it if any."""
    found, after_rest = {}, False
    for tap, stage in student.stages.items():
        layout = student.layouts.get(tap, Layout())
        # Left out are layers of tokens and of maps with the channels last, and stages whose input includes
        # tokens without a code: these tokens come from a stage that is trained later.
        if not after_rest and not layout.channels_last and (layer := find_solvable_layer(stage)):
            found[tap] = layer
        after_rest = layout.has_rest
    return found


def _over_ranks(groups: list[MomentsMeter]) -> list[Moments]:
    return [group.total.merge_over_ranks() for group in groups]
