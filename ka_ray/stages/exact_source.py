"""The start that is solved layer by layer, from as many images as make it better."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ka_ray.config.student import STUDENT
from ka_ray.errors import InputError
from ka_ray.numerics.ranks import on_any_rank, sum_over_ranks, world_size
from ka_ray.stages.free_memory import free_memory
from ka_ray.stages.start_sources import Judge, MeasuredSource, ReadImages, ReportStep
from ka_ray.student import Student
from ka_ray.student.block_solver import BlockSolverSettings, LayerError, check_solvable, solve_student
from ka_ray.student.start import Start
from ka_ray.student.sum_samples import SampleLimits

IMAGES_TO_TRY = (2000, 4000, 8000)
"""Numbers of images on all ranks together that a student is solved from, one after the other."""

TOGETHER = BlockSolverSettings(
    images=IMAGES_TO_TRY[-1],
    memory_gib=6.0,
    choice_images=2000,
    samples=SampleLimits(per_input=200, minimum=8000, values=2e8),
)
"""How all ranks together solve a student from enough memory; each of them takes an equal share."""

FREE_SHARE = 0.3
"""Share of the free memory that the values of all networks may take: the samples of a layer, sums and copies
need about twice as much again."""

WORTH_MORE_IMAGES = 0.05
"""Share of its divergence by which a student from more images must be better before still more are tried."""


@dataclass(frozen=True)
class ExactSource(MeasuredSource):
    """The student that is solved layer by layer from the teachers' features."""

    def check(self) -> str:
        """Check that the networks are of one architecture that the solver knows; widths may differ."""
        return f"{check_solvable(self.build_network(), self.teachers, self.example())} layers are computed"

    def build(self, read_images: ReadImages, report: ReportStep, judge: Judge) -> Start:
        """Solve the student, from twice as many images as long as that makes it clearly better.

        Args:
            read_images: Gives the images that it is solved on.
            report: Called after each solved layer.
            judge: Chooses the number of images.
        """
        best, used, divergences = self.build_network(), (0, 0), dict[int, float]()
        device = self.teachers[0].preprocess.mean.device
        share = share_of_rank(free_memory(device), device)
        for limit in IMAGES_TO_TRY:
            settings = replace(share, images=math.ceil(limit / world_size()))
            solved, errors, all_read = self._solve(read_images(), settings, limit, report)
            least, divergence = min(divergences.values(), default=math.inf), judge(solved)
            if not divergences or divergence < least:
                best, used = solved, (errors[0].images, errors[-1].images)
            is_worth_more = not divergences or divergence < (1 - WORTH_MORE_IMAGES) * least
            divergences[limit] = divergence
            if all_read or not is_worth_more:
                break
        return Start(best, (), note=_describe_images(divergences) + _describe_memory(*used))

    def _solve(
        self,
        images: Iterator[Mapping[str, Tensor]],
        settings: BlockSolverSettings,
        all_images: int,
        report: ReportStep,
    ) -> tuple[nn.Module, list[LayerError], bool]:
        """Solve the student from some images of each rank, and say whether no rank has more."""
        spec, network, limit, read = self.spec, self.build_network(), settings.images, 0
        preprocess = Student(spec).preprocess.to(self.teachers[0].preprocess.mean.device)

        def report_layer(error: LayerError, number: int, total: int) -> None:
            report(
                f"start exact, at most {all_images} images", number, total, {"error": error.relative_error}
            )

        def count() -> Iterator[Mapping[str, Tensor]]:
            nonlocal read
            for batch in images:
                read += len(batch[STUDENT])
                yield batch

        networks = network, preprocess, self.teachers, spec.unified_label_sets
        try:
            solved, errors = solve_student(*networks, count(), sum_over_ranks, report_layer, settings)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            # From sums over all ranks, so all ranks raise it.
            raise InputError(f"student.start: exact cannot be solved ({error})") from None
        # The solver reads fewer than the limit if the values of so many images would not fit into memory.
        has_more = read >= limit and (read > limit or next(images, None) is not None)
        return solved, errors, not on_any_rank(has_more)


def share_of_rank(free: int, device: torch.device) -> BlockSolverSettings:
    """Return what one rank does of :data:`TOGETHER`, with which it fits into its free memory.

    Args:
        free: Free memory, in bytes.
        device: Where it is. All ranks may be on this machine, and then they share the memory of its CPUs.
    """
    ranks, samples = world_size(), TOGETHER.samples
    free_gib = free / 1024**3 / (1 if device.type == "cuda" else ranks)
    memory_gib = min(TOGETHER.memory_gib / ranks, FREE_SHARE * free_gib)
    return BlockSolverSettings(
        images=math.ceil(TOGETHER.images / ranks),
        memory_gib=memory_gib,
        choice_images=math.ceil(TOGETHER.choice_images / ranks),
        samples=SampleLimits(
            per_input=math.ceil(samples.per_input / ranks),
            minimum=math.ceil(samples.minimum / ranks),
            values=samples.values * memory_gib / TOGETHER.memory_gib,
        ),
    )


def _describe_memory(first: int, last: int) -> str:
    """Return whether the first layers, whose maps are large, were solved from fewer images than the last."""
    if first == last:
        return ""
    return f"; the first layers from {first:,} in each process, which fit into its memory"


def _describe_images(divergences: Mapping[int, float]) -> str:
    """Return from how many images the student was solved, and how the others that were tried compare."""
    best = min(divergences, key=divergences.__getitem__)
    others = [f"{number:,}: {value:.3f}" for number, value in divergences.items() if number != best]
    tried = f", divergence {divergences[best]:.3f}; from {', '.join(others)}" if others else ""
    return f"at most {best:,} images{tried}"
