"""Conjugate gradients against the solution with the Gram matrix, and through the layers' stage."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ka_ray.errors import InputError
from ka_ray.numerics.conjugate_gradient import DEFAULT_RIDGE, solve_iteratively
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.ridge import LayerSolution, solve
from ka_ray.stages import layer_solver as solved
from ka_ray.stages import run_stages
from ka_ray.stages.inputs import load_stage, stage_summary_path
from ka_ray.stages.layer_solver import describe_gram_sizes
from ka_ray.student import Student

CPU = torch.device("cpu")


def samples_of(groups: int, count: int = 400, inputs: int = 12, outputs: int = 3) -> torch.Tensor:
    given = torch.randn(count, groups, inputs, dtype=torch.float64) * torch.logspace(0, -2, inputs) + 5
    weight = torch.randn(groups, inputs, outputs, dtype=torch.float64)
    targets = torch.einsum("ngd,gdt->ngt", given, weight) + 0.1 * torch.randn(count, groups, outputs) - 2
    return torch.cat([given, targets], dim=2)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_solution_is_that_with_the_gram_matrix(groups):
    samples = samples_of(groups)
    learned_from, held_out = samples[:300], samples[300:]

    def stream():
        for part in learned_from.split(70):
            yield False, part
            yield True, part[:0]
        yield True, held_out

    found, passes = solve_iteratively(stream, groups, 3, CPU)
    moments = [Moments.of(group) for group in learned_from.unbind(dim=1)]
    others = [Moments.of(group) for group in held_out.unbind(dim=1)]
    for group, part in enumerate(moments):
        covariance, size = part.covariance, 12
        ridge = (
            DEFAULT_RIDGE * covariance[:size, :size].diagonal().mean() * torch.eye(size, dtype=torch.float64)
        )
        weight = np.linalg.solve(
            (covariance[:size, :size] + ridge).numpy(), covariance[:size, size:].numpy()
        ).T
        np.testing.assert_allclose(found.weight[group], weight, atol=1e-5)
        bias = part.mean[size:].numpy() - weight @ part.mean[:size].numpy()
        np.testing.assert_allclose(found.bias[group], bias, atol=1e-4)
        given = learned_from[:, group, :size] @ found.weight[group].T + found.bias[group]
        torch.testing.assert_close(found.mean[group], given.mean(dim=0))
        torch.testing.assert_close(found.variance[group], given.var(dim=0, correction=0), rtol=1e-4, atol=0)
    one_ridge = solve(
        moments, others, 3, [DEFAULT_RIDGE]
    )  # solves on both parts, but judges by the first alone
    assert found.relative_error == pytest.approx(one_ridge.relative_error, rel=1e-4)
    assert 3 < passes <= 3 + 4 * 12


def test_outputs_that_never_vary_are_their_mean():
    samples = samples_of(1)
    samples[..., -1] = 4.0
    found, _ = solve_iteratively(lambda: iter([(False, samples), (True, samples)]), 1, 3, CPU)
    assert found.weight[0, -1].abs().max() == 0
    assert found.bias[0, -1].item() == pytest.approx(4.0)


def test_without_held_out_images_it_says_so():
    samples = samples_of(1)
    with pytest.raises(InputError, match="too few images to hold some out"):
        solve_iteratively(lambda: iter([(False, samples)]), 1, 3, CPU)
    with pytest.raises(InputError, match="a worker has no images"):
        solve_iteratively(lambda: iter([(True, samples)]), 1, 3, CPU)


def without_held_out(
    learned_from: list[Moments], held_out: list[Moments], num_outputs: int, ridges: Sequence[float]
) -> LayerSolution:
    """The solution with the Gram matrix on the same images: a set merged with itself changes nothing."""
    return solve(learned_from, learned_from, num_outputs, ridges)


@pytest.mark.parametrize("inputs", ["codes", "student"])
def test_a_students_layers_come_out_the_same(inputs_for, inputs, monkeypatch):
    monkeypatch.setattr(solved, "solve", without_held_out)
    made = {}
    for gib in (4, 0):
        run = inputs_for(
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
        made[gib] = Student(run.plan.spec)
        load_stage(run.folder, "layers", made[gib])
        assert ("conjugate gradients" in describe_gram_sizes(made[gib], run.config.layers)) == (gib == 0)
    torch.testing.assert_close(made[0].state_dict(), made[4].state_dict(), atol=1e-3, rtol=1e-3)
