"""Test that two ranks build, choose and keep the same students as one process does, and resume as it does."""

import json
import pickle
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from ka_ray.stages import list_stages, run_stages
from ka_ray.stages.inputs import StageInputs, load_stage_weights, stage_summary_path

pytestmark = pytest.mark.slow

OPTIONS = (
    *("student.start=auto", "layers.behind_start=true", "codes.solver=exact"),
    *("joint.epochs=2", "joint.batch_size=33", "joint.ema=0.9"),  # an odd batch: the ranks' shares differ
)


def train_on_rank(rank, port, arguments, folder, stop_after):
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # the ranks must not need the same random state
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    config, plan, data = pickle.loads(arguments)

    def stop(progress):
        if progress.stage == "joint" and progress.epoch_ended and progress.epoch == stop_after:
            raise KeyboardInterrupt

    try:
        run_stages(StageInputs(config, plan, data, Path(folder), torch.device("cpu"), stop))
    except KeyboardInterrupt:
        assert stop_after
    dist.destroy_process_group()


def run_on_two_ranks(inputs, folder, stop_after=0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = pickle.dumps((inputs.config, inputs.plan, inputs.data))
    multiprocessing.spawn(train_on_rank, (port, arguments, str(folder), stop_after), nprocs=2)


def load_summary(folder, stage):
    return json.loads(stage_summary_path(folder, stage).read_text())


def test_two_ranks_choose_as_one_process_and_resume(make_inputs, tmp_path):
    inputs = make_inputs(*OPTIONS)
    run_stages(inputs)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run_on_two_ranks(inputs, whole)
    one, two = load_summary(inputs.folder, "start"), load_summary(whole, "start")
    assert two["chosen"] == one["chosen"]
    assert two["skipped"] == one["skipped"]
    for found, expected in zip(two["candidates"], one["candidates"], strict=True):
        assert found["name"] == expected["name"]
        assert found["worst_divergence"] == pytest.approx(expected["worst_divergence"], rel=0.05, abs=1e-3)
    assert load_summary(whole, "joint")["choice"]["qualities"].keys() == {
        *("start", "epoch 1", "epoch 1, averaged", "epoch 2", "epoch 2, averaged")
    }

    run_on_two_ranks(inputs, resumed, stop_after=1)
    assert not stage_summary_path(resumed, "joint").exists()
    run_on_two_ranks(inputs, resumed)
    for stage in list_stages(inputs.config):
        expected, found = load_stage_weights(whole, stage), load_stage_weights(resumed, stage)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=f"{stage} {name}")
    assert load_summary(resumed, "joint")["choice"] == load_summary(whole, "joint")["choice"]
