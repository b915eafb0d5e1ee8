"""Test conjugate gradients against the solution with the Gram matrix, by itself and in the stage `layers`."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.numerics.conjugate_gradient import DEFAULT_RIDGE, solve_iteratively
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.ridge import LayerSolution, solve
from ka_ray.stages import layer_solver, run_stages
from ka_ray.stages.inputs import load_stage, stage_summary_path
from ka_ray.stages.layer_solver import describe_gram_sizes
from ka_ray.student import Student

CPU = torch.device("cpu")


def make_samples(groups: int, count: int = 400, inputs: int = 12, outputs: int = 3) -> torch.Tensor:
    features = torch.randn(count, groups, inputs, dtype=torch.float64) * torch.logspace(0, -2, inputs) + 5
    weight = torch.randn(groups, inputs, outputs, dtype=torch.float64)
    targets = torch.einsum("ngd,gdt->ngt", features, weight) + 0.1 * torch.randn(count, groups, outputs) - 2
    return torch.cat([features, targets], dim=2)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_solution_equals_that_with_the_gram_matrix(groups):
    samples = make_samples(groups)
    learned_from, held_out = samples[:300], samples[300:]

    def stream():
        for part in learned_from.split(70):
            yield False, part
            yield True, part[:0]
        yield True, held_out

    solution, passes = solve_iteratively(stream, groups, 12, 3, CPU)
    moments = [Moments.of(group) for group in learned_from.unbind(dim=1)]
    held_out_moments = [Moments.of(group) for group in held_out.unbind(dim=1)]
    for group, part in enumerate(moments):
        covariance, size = part.covariance, 12
        ridge = (
            DEFAULT_RIDGE * covariance[:size, :size].diagonal().mean() * torch.eye(size, dtype=torch.float64)
        )
        weight = np.linalg.solve(
            (covariance[:size, :size] + ridge).numpy(), covariance[:size, size:].numpy()
        ).T
        np.testing.assert_allclose(solution.weight[group], weight, atol=1e-5)
        bias = part.mean[size:].numpy() - weight @ part.mean[:size].numpy()
        np.testing.assert_allclose(solution.bias[group], bias, atol=1e-4)
        outputs = learned_from[:, group, :size] @ solution.weight[group].T + solution.bias[group]
        torch.testing.assert_close(solution.mean[group], outputs.mean(dim=0))
        variance = outputs.var(dim=0, correction=0)
        torch.testing.assert_close(solution.variance[group], variance, rtol=1e-4, atol=0)
    # The error is that of a solution from the first part only, although the returned weights use both parts.
    with_gram_matrix = solve(moments, held_out_moments, 3, [DEFAULT_RIDGE])
    assert solution.relative_error == pytest.approx(with_gram_matrix.relative_error, rel=1e-4)
    assert 3 < passes <= 3 + 4 * 12


def test_constant_outputs_are_predicted_by_their_mean():
    samples = make_samples(1)
    samples[..., -1] = 4.0
    solution, _ = solve_iteratively(lambda: iter([(False, samples), (True, samples)]), 1, 12, 3, CPU)
    assert solution.weight[0, -1].abs().max() == 0
    assert solution.bias[0, -1].item() == pytest.approx(4.0)


def test_samples_without_held_out_or_without_fitted_images_are_refused():
    samples = make_samples(1)
    with pytest.raises(InputError, match="too few images to hold some out"):
        solve_iteratively(lambda: iter([(False, samples)]), 1, 12, 3, CPU)
    with pytest.raises(InputError, match="no images to learn from"):
        solve_iteratively(lambda: iter([(True, samples)]), 1, 12, 3, CPU)


def solve_without_held_out(
    learned_from: list[Moments], held_out: list[Moments], num_outputs: int, ridges: Sequence[float]
) -> LayerSolution:
    """Solve on the fitted images only: moments merged with themselves have the same mean and covariance."""
    return solve(learned_from, learned_from, num_outputs, ridges)


@pytest.mark.parametrize("inputs", ["codes", "student"])
def test_a_students_layers_are_the_same_with_and_without_gram_matrices(make_inputs, inputs, monkeypatch):
    monkeypatch.setattr(layer_solver, "solve", solve_without_held_out)
    students = {}
    for gib in (4, 0):
        run = make_inputs(
            "codes={solver: exact, basis: channels}",
            "layers.solver=least_squares",
            f"layers.inputs={inputs}",
            f"layers.max_gram_gib={gib}",
            "layers.ridge=0.001",
            "joint.epochs=0",
        )
        for stage in ("codes", "layers", "joint"):
            stage_summary_path(run.folder, stage).unlink(missing_ok=True)
        run_stages(run)
        students[gib] = Student(run.plan.spec)
        load_stage(run.folder, "layers", students[gib])
        assert ("conjugate gradients" in describe_gram_sizes(students[gib], run.config.layers)) == (gib == 0)
    torch.testing.assert_close(students[0].state_dict(), students[4].state_dict(), atol=1e-3, rtol=1e-3)
