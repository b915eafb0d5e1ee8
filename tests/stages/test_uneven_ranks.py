"""Test that a rank without images to learn from, or without held-out ones, stops nobody.

Two processes of a gloo group share the images in a way in which one of them has nothing of a kind.
"""

import multiprocessing
import pickle
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from ka_ray.errors import InputError
from ka_ray.features.store import FEATURES
from ka_ray.numerics.conjugate_gradient import solve_iteratively
from ka_ray.numerics.ranks import rank, sum_over_ranks, world_size
from ka_ray.stages.codes_learner import build_amalgamations
from ka_ray.stages.held_out import judging_batches, measure_quality
from ka_ray.stages.inputs import StageInputs
from ka_ray.stages.layers_behind_start import express_codes, measure_errors
from ka_ray.stages.layers_learner import LayerwiseLearner
from ka_ray.student import Student
from ka_ray.student.block_solver import solve_student
from ka_ray.student.plan import make_plan
from ka_ray.student.stacked_networks import StackedNetworks
from ka_ray.student.width_spectra import measure_group_spectra
from ka_ray.teachers import load_teacher
from ka_ray.training.batches import Batches

CPU = torch.device("cpu")


def run_case(rank: int, port: int, case, arguments: bytes, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    # A rank that waits alone fails soon.
    dist.init_process_group("gloo", address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    result = case(*pickle.loads(arguments))
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


def on_two_ranks(case, folder: Path, *arguments):
    """Run a function on two ranks; check that both return the same, and return it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(["ka_ray.stages"])
    given = (port, case, pickle.dumps(arguments), str(folder))
    start_processes(run_case, given, nprocs=2, start_method="forkserver")
    first, second = (pickle.loads((folder / f"{i}.pickle").read_bytes()) for i in (0, 1))
    assert pickle.dumps(first) == pickle.dumps(second)
    return first


def make_samples() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 1, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 4, 2, generator=generator, dtype=torch.float64)
    return torch.cat([inputs, torch.einsum("ngd,gdt->ngt", inputs, weight) + 1], dim=2)


def solve_in_parts():
    """Solve a layer; of two ranks, the first learns from all samples and the second has the held-out ones."""
    samples, alone = make_samples(), world_size() == 1

    def stream():
        if alone or rank() == 0:
            yield False, samples[:40]
        if alone or rank() == 1:
            yield True, samples[40:]

    solution, _ = solve_iteratively(stream, 1, 4, 2, CPU)
    return solution.weight.numpy(), solution.bias.numpy(), solution.relative_error


def solve_nothing() -> str:
    try:
        solve_iteratively(lambda: iter([(True, make_samples())]), 1, 4, 2, CPU)
    except InputError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def test_conjugate_gradients_need_no_samples_of_each_kind_on_each_rank(tmp_path):
    weight, bias, error = on_two_ranks(solve_in_parts, tmp_path)
    expected_weight, expected_bias, expected_error = solve_in_parts()
    np.testing.assert_allclose(weight, expected_weight, atol=1e-10)
    np.testing.assert_allclose(bias, expected_bias, atol=1e-10)
    assert error == pytest.approx(expected_error, rel=1e-6)


def test_samples_that_no_rank_has_are_refused_by_all(tmp_path):
    assert "no images to learn from" in on_two_ranks(solve_nothing, tmp_path)


def make_learner(inputs: StageInputs) -> LayerwiseLearner:
    torch.manual_seed(0)
    plan = inputs.plan
    encoders = build_amalgamations("direct", plan.channels, plan.spec.widths)
    return LayerwiseLearner(Student(plan.spec), encoders)


def judge(config, plan, data, count: int):
    """Judge a student and its layers on a few held-out images."""
    inputs = StageInputs(config, plan, data, data, CPU, lambda progress: None)
    learner, store = make_learner(inputs), inputs.store(FEATURES)
    columns = ["image", "scores", *learner.encoders]
    batches = judging_batches(inputs, store, columns, 32, np.arange(count))
    errors = measure_errors(learner, batches)
    quality = measure_quality(learner.student.eval(), batches, plan.label_sets)
    return errors, quality.to_json()


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_held_out_images_than_ranks_judge_as_in_one_process(make_inputs, tmp_path, count):
    inputs = make_inputs()
    arguments = (inputs.config, inputs.plan, inputs.data, count)
    errors, quality = on_two_ranks(judge, tmp_path, *arguments)
    expected_errors, expected_quality = judge(*arguments)
    assert errors == pytest.approx(expected_errors, rel=1e-5)
    assert quality == pytest.approx(expected_quality, rel=1e-5, abs=1e-6)
    assert quality["images"] == count


def test_no_held_out_images_are_refused(make_inputs):
    inputs = make_inputs()
    with pytest.raises(InputError, match=r"none of the 256 stored images .* is held out"):
        judging_batches(inputs, inputs.store(FEATURES), ["image"], 32, np.arange(0))


def express(config, plan, data):
    """Express codes; all held-out images are those of the first rank."""
    inputs = StageInputs(config, plan, data, data, CPU, lambda progress: None)
    learner = make_learner(inputs)
    batches = FirstRankHeldOut(inputs.store(FEATURES), ["image", *learner.encoders], 32, 0, num_draws=2)
    encoders = express_codes(learner.student, learner.encoders, batches, 16)
    return {name: tensor.numpy() for name, tensor in encoders.state_dict().items()}


class FirstRankHeldOut(Batches):
    """Batches in which every fourth image is held out, all of which the first of two ranks reads."""

    def single_pass(self):
        for batch in super().single_pass():
            index = torch.arange(len(batch["image"]))
            # Rows alternate between ranks: row 4 i is read by rank 0, as its row 2 i.
            step = 4 if world_size() == 1 else 2
            held = (index % step == 0) & (torch.tensor(rank() == 0))
            batch["draws"] = torch.stack([torch.zeros(len(index)), (~held).float()], dim=1)
            yield batch


def test_codes_are_expressed_with_all_held_out_images_on_one_rank(make_inputs, tmp_path):
    inputs = make_inputs()
    arguments = (inputs.config, inputs.plan, inputs.data)
    found, expected = on_two_ranks(express, tmp_path, *arguments), express(*arguments)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-4, err_msg=name)


def measure_on_first_rank(config):
    """Measure spectra, and solve a student, from images that only the first rank has."""
    torch.manual_seed(0)
    teachers = [load_teacher(teacher) for teacher in config.teachers]
    plan = make_plan(config, teachers)
    images = torch.randint(
        0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    network = plan.spec.build_network().eval().requires_grad_(False)
    networks = StackedNetworks(network, {t.name: t.network for t in teachers}, plan.spec.example)
    inputs = [[teacher.preprocess(images) for teacher in teachers]] if rank() == 0 else []
    spectra = measure_group_spectra(networks, inputs)
    names = ["student", *(teacher.name for teacher in teachers)]
    batches = [dict.fromkeys(names, images)] if rank() == 0 else []
    try:
        solve_student(
            plan.spec.build_network(), Student(plan.spec).preprocess, teachers, plan.label_sets, batches,
            sum_over_ranks,
        )  # fmt: skip
    except InputError as error:
        return {index: found.variances.numpy() for index, found in spectra.items()}, str(error)
    return {index: found.variances.numpy() for index, found in spectra.items()}, ""


def test_spectra_come_from_the_ranks_with_images_and_a_solver_without_is_refused_by_all(
    load_config, tmp_path
):
    config = load_config()
    spectra, refused = on_two_ranks(measure_on_first_rank, tmp_path, config)
    expected, solved = measure_on_first_rank(config)
    assert (refused, solved) == ("student.start exact: a worker got no images; give more images", "")
    assert spectra.keys() == expected.keys()
    for index, variances in expected.items():
        np.testing.assert_allclose(spectra[index], variances, atol=1e-10)
