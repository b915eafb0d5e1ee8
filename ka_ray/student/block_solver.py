"""Solve a student in closed form, with neither gradient steps nor labels, also through residual connections.

The teachers side by side are one network with block-diagonal layers, and the student is that network made
narrower. All networks are computed node by node for all images. Where a layer, or a sum of layers, ends, the
student's layer is the least-squares map from the student's own features to the code of the stacked teachers'
features. So it makes up for errors before it; where it is added to a stream, also for those of the stream.
Layer norms act on the student's own features, and attention heads are kept as a whole.

Shapes: B images of a batch, C channels, H and W in pixels.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from ka_ray.amalgamation import LabelSets
from ka_ray.config.student import STUDENT
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.ranks import on_any_rank
from ka_ray.numerics.rectified_regression import refine_solution
from ka_ray.numerics.ridge import RIDGES, LayerSolution, solve
from ka_ray.numerics.samples import Merge
from ka_ray.student.activation_range import find_clamp
from ka_ray.student.code_checks import check_codes
from ka_ray.student.code_choice import choose_codes
from ka_ray.student.graph_nodes import is_image
from ka_ray.student.linear_layers import apply_solution
from ka_ray.student.lockstep import Lockstep
from ka_ray.student.norm_fit import fit_norm
from ka_ray.student.solvable_sums import SolvableSum
from ka_ray.student.stacked_networks import StackedNetworks
from ka_ray.student.sum_samples import SampleLimits, SumSampler, check_memory
from ka_ray.teachers import Teacher


@dataclass(frozen=True)
class BlockSolverSettings:
    """How a student is solved.

    Attributes:
        images: Largest number of images on this rank.
        memory_gib: Largest size of the values of all networks, in GiB. Early layers, whose maps are large,
            are solved from fewer images.
        choice_images: Number of images on which the codes are chosen.
        samples: Number of samples that each layer is solved from.
        ridges: Candidates for the ridge, in units of the mean variance of an input.
        refinements: Steps of :func:`ka_ray.numerics.rectified_regression.refine_solution`; 0: none.
    """

    images: int = 3000
    memory_gib: float = 3.0
    choice_images: int = 1000
    samples: SampleLimits = field(default_factory=SampleLimits)
    ridges: Sequence[float] = RIDGES
    refinements: int = 20


@dataclass(frozen=True)
class LayerError:
    """How well a layer, or the layers of one sum, was solved.

    Attributes:
        layers: Paths of the layers.
        relative_error: Squared error of the output relative to its variance, on held-out images.
        ridge: The ridge that was chosen on them.
        images: Number of this rank's images that it was solved from.
        seconds: Seconds since the start of the solver.
    """

    layers: tuple[str, ...]
    relative_error: float
    ridge: float
    images: int
    seconds: float


ReportLayer = Callable[[LayerError, int, int], None]
"""Called with each solved sum, its number from 1, and the number of sums."""


def solve_student(
    network: nn.Module,
    preprocess: nn.Module,
    teachers: Sequence[Teacher],
    label_sets: LabelSets,
    batches: Iterable[Mapping[str, Tensor]],
    merge: Merge = lambda sums: sums,
    report: ReportLayer = lambda *_: None,
    settings: BlockSolverSettings = BlockSolverSettings(),
) -> tuple[nn.Module, list[LayerError]]:
    """Solve all weights of a student's network from unlabelled images.

    Args:
        network: The student's network before it is cut; it stays unchanged, and its weights do not matter.
        preprocess: Turns the student's pixels into the input of its network.
        teachers: The teachers, of the student's architecture apart from the head.
        label_sets: The teachers' classes and the rule that combines their scores.
        batches: This rank's images: name of a teacher, or "student" -> its pixels `[B, C, H, W]`. Batches
            are read until there are enough images.
        merge: Adds a float64 tensor up over all ranks. All ranks call it equally often.
        report: Called after each solved layer.
        settings: How to solve.

    Returns:
        The network in eval mode, and the errors of its layers in the order in which they were solved.

    Raises:
        InputError: The architectures differ or are not supported, or there are too few images.
    """
    student = copy.deepcopy(network).eval().requires_grad_(False)
    modules = {teacher.name: teacher.preprocess for teacher in teachers} | {STUDENT: preprocess}
    with torch.no_grad():
        inputs = ([module(batch[name]) for name, module in modules.items()] for batch in batches)
        first = next(inputs, None)
        if on_any_rank(first is None):  # all raise: one alone would leave the others waiting
            raise InputError("student.start exact: a worker got no images; give more images")
        assert first is not None
        networks = StackedNetworks(student, {t.name: t.network for t in teachers}, first[-1][:4])
        solver = _BlockSolver(networks, label_sets, merge, settings)
        return student, solver.solve(itertools.chain([first], inputs), report)


def check_solvable(network: nn.Module, teachers: Sequence[Teacher], images: Tensor) -> int:
    """Check, without solving anything, that least squares can solve all weights of a student's network.

    Args:
        network: The student's network before it is cut, in eval mode.
        teachers: The teachers.
        images: Input of the network, `[B, C, H, W]`, two or more; only the shape matters.

    Returns:
        Number of its layers.

    Raises:
        InputError: The architectures differ or are not supported.
    """
    student = copy.deepcopy(network).eval().requires_grad_(False)
    with torch.no_grad():
        return check_codes(StackedNetworks(student, {t.name: t.network for t in teachers}, images))


class _BlockSolver:
    """Solver of all layers of a student.

    Args:
        networks: The teachers and the student, whose weights are set in place.
        label_sets: Combine the teachers' scores.
        merge: Adds a float64 tensor up over all ranks.
        settings: How to solve.
    """

    def __init__(
        self,
        networks: StackedNetworks,
        label_sets: LabelSets,
        merge: Merge,
        settings: BlockSolverSettings,
    ) -> None:
        self._networks, self._label_sets = networks, label_sets
        self._merge, self._settings = merge, settings
        self._began = time.perf_counter()

    def solve(self, inputs: Iterator[list[Tensor]], report: ReportLayer) -> list[LayerError]:
        """Solve all layers in the order of the graph."""
        networks, errors = self._networks, list[LayerError]()
        check_memory(networks, self._settings.memory_gib)
        first = list(_take(inputs, self._max_images(networks.first_node)))
        chosen_on = list(_take(iter(first), self._settings.choice_images))
        codes = choose_codes(networks, chosen_on, self._merge)
        networks.code_added_weights(codes)
        self._sampler = SumSampler(networks, codes, self._label_sets, self._settings.samples)
        values, teachers = networks.start(), slice(networks.num_teachers)
        student = slice(networks.num_teachers, None)
        inputs = itertools.chain(first, inputs)
        for node in networks.graph.nodes:
            if node.op == "output":
                break
            if is_image(node):
                continue
            # Later maps are smaller, so that more images fit.
            for batch in _take(inputs, self._max_images(node) - values.num_images):
                values.add(batch, node)
            values.compute(node, teachers)
            if total := networks.sums.get(node):
                errors.append(self._solve_sum(values, total, len(errors)))
                report(errors[-1], len(errors), len(networks.sums))
                for inner in total.in_order:
                    values.compute(inner, student)
            elif node not in networks.computed_at:
                values.compute(node, student)
            if node in networks.norms and networks.norms[node].readers is None:
                fit_norm(networks, values, node, codes[networks.group_index(node)], self._merge)
                values.compute(node, student)
            values.forget_after(node)
        return errors

    def _max_images(self, node: fx.Node) -> int:
        """Return the largest number of images when a node is computed."""
        return min(self._settings.images, self._networks.max_images(node, self._settings.memory_gib))

    def _solve_sum(self, values: Lockstep, total: SolvableSum, number: int) -> LayerError:
        """Solve the layers of a sum, and write the solution into the student."""
        found = self._sampler.sample(values, total, seed=number)
        samples = found.layers
        fitted_on, judged_on = (samples.moments(held, self._merge) for held in (False, True))
        solution = solve(fitted_on, judged_on, samples.num_outputs, self._settings.ridges)
        moments = [a.merge(b) for a, b in zip(fitted_on, judged_on, strict=True)]
        clamp = find_clamp(self._networks.student, total.root)
        if clamp is not None and self._settings.refinements:
            solution = refine_solution(
                solution, samples, found.others, moments, clamp, self._settings.refinements, self._merge
            )
        self._apply(solution, total, moments)
        return LayerError(
            tuple(layer.path for layer in total.layers),
            solution.relative_error,
            solution.ridge,
            values.num_images,
            time.perf_counter() - self._began,
        )

    def _apply(self, solution: LayerSolution, total: SolvableSum, moments: Sequence[Moments]) -> None:
        """Write the solution of several layers side by side into each of them; the first gets the bias."""
        start, bias = 0, solution.bias
        for layer in total.layers:
            module = layer.layer(self._networks.student)
            stop = start + module.weight[0].numel()
            weight = solution.weight[:, :, start:stop]
            outputs = [
                part.slice_channels(start, stop).apply_affine(own_weight, own_bias)
                for part, own_weight, own_bias in zip(moments, weight, bias, strict=True)
            ]
            mean = torch.stack([output.mean for output in outputs])
            variance = torch.stack([output.covariance.diagonal() for output in outputs])
            own = LayerSolution(weight, bias, mean, variance, solution.ridge, solution.relative_error)
            apply_solution(own, module, layer.norm(self._networks.student))
            start, bias = stop, torch.zeros_like(bias)


def _take(batches: Iterator[list[Tensor]], limit: int) -> Iterator[list[Tensor]]:
    """Yield batches until there are as many images as the limit says; a batch too large is cut."""
    while limit > 0 and (batch := next(batches, None)) is not None:
        yield [pixels[:limit] for pixels in batch]
        limit -= len(batch[0])
