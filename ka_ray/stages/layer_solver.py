"""What the codes' and the layers' stages compute instead of training it: sums over the images, then a solve.

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
from ka_ray.features.stack import SCORES
from ka_ray.numerics.conjugate_gradient import DEFAULT_RIDGE, solve_iteratively
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.positions import sample_positions
from ka_ray.numerics.ranks import rank
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, RIDGES, LayerSolution, solve
from ka_ray.student import Student
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
    """Solves layers of a student by least squares, every rank the same.

    Args:
        student: Its layers are set in place.
        encoders: tap -> :class:`ka_ray.amalgamation.Amalgamation`, which give inputs and targets.
        config: Which inputs, how many positions.
        batches: Makes batches of some of the stored columns, with :data:`NUM_SOLVER_DRAWS` draws.
        report: Told where it stands, by rank 0.
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
        found = {tap: find_solvable_layer(stage) for tap, stage in student.stages.items()}
        self._found = {tap: one for tap, one in found.items() if one is not None}
        self._ridges = RIDGES if config.ridge is None else (config.ridge,)
        self._began = time.perf_counter()

    @torch.no_grad()
    def solve(self) -> tuple[dict[str, LayerSolution], list[Progress]]:
        """Solve what can be solved; give what was found, and one record a pass over the images."""
        if not self._found:
            return {}, []
        together = self.config.inputs == "codes"
        passes = [list(self._found)] if together else [[tap] for tap in self._found]
        solutions: dict[str, LayerSolution] = {}
        history = []
        for number, taps in enumerate(passes, start=1):
            behind = [tap for tap in self.student.stages if together or tap not in self._found]
            batches = self._batches(["image", *dict.fromkeys([*taps, *behind])])
            fitting = [tap for tap in taps if gram_gib(self._layer(tap)) <= self.config.max_gram_gib]
            found = {
                tap: solve(*sums, self._num_outputs(tap), self._ridges)
                for tap, sums in self._moments(fitting, batches).items()
            }
            for tap in taps:
                solutions[tap] = found[tap] if tap in found else self._iterated(tap, batches)
                apply_solution(solutions[tap], *self._found[tap])
            losses = {tap: solutions[tap].relative_error for tap in taps}
            images = len(batches.rows) * number // len(passes)  # every layer sees each image once
            seconds = time.perf_counter() - self._began
            history.append(Progress("layers", number, len(passes), 1, 1, images, seconds, losses))
            if rank() == 0:
                self._report(history[-1])
        return solutions, history

    def _moments(
        self, taps: Sequence[str], batches: Batches
    ) -> dict[str, tuple[list[Moments], list[Moments]]]:
        """For each tap the moments of the images learned from and of those held out, group by group."""
        sums = {tap: (self._meters(tap, batches.device), self._meters(tap, batches.device)) for tap in taps}
        for tap, held_out, samples in self._samples(taps, batches) if taps else ():
            for meter, group in zip(sums[tap][held_out], samples.unbind(dim=1), strict=True):
                meter.add(group)
        return {tap: (_over_ranks(learned), _over_ranks(held)) for tap, (learned, held) in sums.items()}

    def _samples(self, taps: Sequence[str], batches: Batches) -> Iterator[tuple[str, bool, Tensor]]:
        """Go over the images once; give a layer's samples, apart for those held out."""
        for batch in batches.single_pass():
            held_out = batch["draws"][:, 1] < HELD_OUT_FRACTION
            for tap, features, targets in self._pairs(batch, taps):
                available, wanted = math.prod(targets.shape[2:]), self.config.positions_per_image
                positions = sample_positions(batch["draws"][:, 0], available, wanted)
                samples = make_layer_samples(self._layer(tap), features, targets, positions)
                for held, chosen in ((False, ~held_out), (True, held_out)):
                    yield tap, held, samples[chosen].flatten(0, 1)

    def _iterated(self, tap: str, batches: Batches) -> LayerSolution:
        def stream() -> Iterator[tuple[bool, Tensor]]:
            return ((held, samples) for _, held, samples in self._samples([tap], batches))

        groups = num_groups(self._layer(tap))
        outputs, ridge = self._num_outputs(tap), self.config.ridge or DEFAULT_RIDGE
        solution, _ = solve_iteratively(stream, groups, outputs, batches.device, ridge)
        return solution

    def _num_outputs(self, tap: str) -> int:
        return len(self._layer(tap).weight) // num_groups(self._layer(tap))

    def _meters(self, tap: str, device: torch.device) -> list[MomentsMeter]:
        size = self._layer(tap).weight[0].numel() + self._num_outputs(tap)
        return [MomentsMeter(size, device) for _ in range(num_groups(self._layer(tap)))]

    def _layer(self, tap: str) -> ConvOrLinear:
        return self._found[tap][0]

    def _pairs(
        self, batch: Mapping[str, Tensor], taps: Sequence[str]
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Give what each layer gets, and what it should give."""
        features = self.student.preprocess(batch["image"])
        for tap, stage in self.student.stages.items():
            if tap in taps:
                yield tap, capture_layer_input(self._layer(tap), stage, features), self._target(tap, batch)
                if tap == taps[-1]:
                    return
            solved = self.config.inputs == "student" and tap in self._found
            features = stage(features) if solved else self._target(tap, batch)

    def _target(self, tap: str, batch: Mapping[str, Tensor]) -> Tensor:
        if tap == SCORES:
            return self.student.spec.unified_label_sets.amalgamate(batch[SCORES])
        return cast(Amalgamation, self.encoders[tap]).encode(batch[tap])


def num_groups(layer: ConvOrLinear) -> int:
    """Count the groups of a layer; a linear one has one."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def gram_gib(layer: ConvOrLinear) -> float:
    """Say how large a layer's Gram matrices are, with what it should give beside what it gets."""
    groups = num_groups(layer)
    return groups * (layer.weight[0].numel() + len(layer.weight) // groups) ** 2 * 8 / 1024**3


def describe_gram_sizes(student: Student, config: LayersConfig) -> str | None:
    """Say, before anything starts, how large the Gram matrices are, and which layers go without."""
    found = {tap: find_solvable_layer(stage) for tap, stage in student.stages.items()}
    sizes = {tap: gram_gib(one[0]) for tap, one in found.items() if one is not None}
    if config.solver != "least_squares" or not sizes:
        return None
    named = ", ".join(
        f"{tap} {1024 * size:.3g} MiB{'' if size <= config.max_gram_gib else ' (by conjugate gradients)'}"
        for tap, size in sizes.items()
    )
    return f"layers: Gram matrices: {named}"


def _over_ranks(groups: list[MomentsMeter]) -> list[Moments]:
    return [group.total.merge_over_ranks() for group in groups]
