"""Test that students computed from moments of one pass equal those whose layers are solved from codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.amalgamation.closed_form import fit_channel_autoencoder
from ka_ray.config import LayersConfig
from ka_ray.errors import InputError
from ka_ray.features.stack import SCORES
from ka_ray.numerics.moments import Moments
from ka_ray.numerics.named_moments import NamedMoments, load_moments, merge_moments, save_moments
from ka_ray.stages.layer_solver import LayerSolver
from ka_ray.student import Student, StudentSpec
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, build_full_width_student

STACKED, WIDTHS = {"conv1": 7, "conv2": 9}, {"conv1": 3, "conv2": 5}
POSITIONS, IMAGES = 6, 60


@pytest.fixture
def spec(make_spec) -> StudentSpec:
    return make_spec("plain", WIDTHS, widths=[3, 5])


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return {
        "image": torch.randint(0, 256, (IMAGES, 3, 8, 8), dtype=torch.uint8),
        "conv1": torch.randn(IMAGES, 7, 8, 8),
        "conv2": torch.randn(IMAGES, 9, 4, 4) + 1,
        SCORES: torch.randn(IMAGES, 4),
        "draws": torch.rand(IMAGES, 2),
    }


def select_rows(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: column[rows] for name, column in batch.items()}


def measure_moments(
    spec: StudentSpec, *batches: dict[str, Tensor], positions: int = POSITIONS
) -> NamedMoments:
    meter = LayerMomentsMeter(spec, STACKED, positions)
    for batch in batches:
        meter.add(batch)
    return meter.total


def make_layer_moments(
    spec: StudentSpec, batch: dict[str, Tensor], positions: int = POSITIONS
) -> LayerMoments:
    return LayerMoments(
        build_full_width_student(spec, STACKED).spec, measure_moments(spec, batch, positions=positions)
    )


class OneBatch:
    """Replaces :class:`ka_ray.training.batches.Batches`: one batch, with only what the solver uses."""

    device = torch.device("cpu")

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch, self.rows = batch, np.arange(len(batch["image"]))

    def single_pass(self):
        yield self.batch


def test_a_student_from_moments_equals_the_one_solved_from_codes(spec, batch):
    layer_moments = make_layer_moments(spec, batch)
    student, solutions = layer_moments.compute_student(WIDTHS)
    encoders = nn.ModuleDict()
    for tap, width in WIDTHS.items():
        chosen = sorted(layer_moments.channel_orders[tap][:width])
        encoders[tap] = Amalgamation([STACKED[tap]], width)
        encoders[tap].links[0].load_state_dict(
            fit_channel_autoencoder(Moments.of(batch[tap]), chosen).state_dict()
        )
    expected = Student(spec)
    config = LayersConfig(solver="least_squares", positions_per_image=POSITIONS)
    expected_solutions, _ = LayerSolver(
        expected, encoders, config, lambda _: OneBatch(batch), lambda _: None
    ).solve()
    assert {tap: solution.ridge for tap, solution in solutions.items()} == {
        tap: solution.ridge for tap, solution in expected_solutions.items()
    }
    for tap, solution in expected_solutions.items():
        assert solutions[tap].relative_error == pytest.approx(solution.relative_error, rel=1e-6)
    torch.testing.assert_close(student.state_dict(), expected.state_dict(), atol=1e-5, rtol=1e-5)
    assert student.spec.widths == WIDTHS


def test_merged_moments_of_parts_equal_those_of_all_images(spec, batch, tmp_path):
    expected = measure_moments(spec, batch)
    parts = [select_rows(batch, rows) for rows in (slice(0, 25), slice(25, None))]
    merged = merge_moments(measure_moments(spec, parts[0]), measure_moments(spec, parts[1]))
    save_moments(merged, tmp_path / "sums.safetensors")
    for other in (measure_moments(spec, *parts), merged, load_moments(tmp_path / "sums.safetensors")):
        assert other.keys() == expected.keys()
        for name, moments in expected.items():
            assert other[name].count == moments.count
            torch.testing.assert_close(other[name].mean, moments.mean)
            torch.testing.assert_close(other[name].scatter, moments.scatter)


def test_stacked_moments_and_next_layer_stats_equal_those_of_the_features(spec, batch):
    layer_moments = make_layer_moments(spec, batch, positions=64)
    for tap in STACKED:
        expected = Moments.of(batch[tap])
        torch.testing.assert_close(layer_moments.stacked_moments[tap].covariance, expected.covariance)
    means = batch["conv2"].relu().mean(dim=(2, 3))
    joint_covariance = Moments.of(torch.cat([means, batch[SCORES]], dim=1)).covariance
    next_layer_stats = layer_moments.next_layer_stats("conv2")
    torch.testing.assert_close(
        (next_layer_stats.covariance, next_layer_stats.targets),
        (joint_covariance[:9, :9], joint_covariance[:9, 9:]),
    )
    assert (next_layer_stats.num_values, layer_moments.next_layer_stats("conv1").num_values) == (1, 9)


def test_a_full_width_student_recovers_the_network_that_made_the_features(spec, batch):
    wide = Student(replace(spec, widths=STACKED)).eval()
    with torch.no_grad():
        features = wide.preprocess(batch["image"])
        for tap, stage in wide.stages.items():
            features = batch[tap] = stage(features)
    student, solutions = make_layer_moments(spec, batch).compute_student(STACKED)
    torch.testing.assert_close(student(batch["image"]), wide(batch["image"]), atol=1e-4, rtol=1e-4)
    assert max(solution.relative_error for solution in solutions.values()) < 1e-8


def test_students_that_cannot_be_computed_are_refused(spec):
    with pytest.raises(InputError, match="only codes of families"):
        LayerMomentsMeter(replace(spec, network="resnet18", paths={"early": "layer1"}), {"early": 8}, 4)
    with pytest.raises(InputError, match="name every layer of the student; 2 layers lead to conv2"):
        LayerMomentsMeter(replace(spec, paths={"conv2": "conv2"}, widths={"conv2": 5}), {"conv2": 9}, 4)
    with pytest.raises(InputError, match=r"leads to conv2 has 9900 inputs and outputs.* 0.7 GiB"):
        LayerMomentsMeter(spec, {"conv1": 1000, "conv2": 900}, 4)
