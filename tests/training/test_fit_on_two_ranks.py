"""Test that two processes in a gloo group train as one process does, with every option of the loop."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from ka_ray.features.store import Store
from ka_ray.training import Batches, FitSettings, WeightAverage, fit

BATCH_SIZE, EPOCHS = 8, 2
SETTINGS = FitSettings(
    *("joint", EPOCHS, 0.05, 0.1),
    **{"warmup": 0.3, "layer_decay": 0.5, "decay_biases": False, "clip_norm": 0.1},
)


class Learner(nn.Module):
    """Learner whose loss depends on the order of the images in no way, if batch norms are frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": (self.network(batch["x"]) - batch["y"]).square().mean()}


def train(folder: Path, batch_norms: Any) -> list[dict[str, Tensor]]:
    """Train on the store in a folder, and return raw and averaged network at the end of each epoch."""
    learner, kept = Learner(), list[dict[str, Tensor]]()
    average = WeightAverage(learner.network, 0.8)

    def keep(progress: Any) -> None:
        if not progress.epoch_ended:  # on a slow machine there are reports within an epoch, too
            return
        for network in (learner.network, average.module):
            kept.append({name: tensor.detach().clone() for name, tensor in network.state_dict().items()})

    settings = FitSettings(**{**vars(SETTINGS), "batch_norms": batch_norms})
    fit(learner, Batches(Store(folder), ["x", "y"], BATCH_SIZE, seed=5), settings, keep, average)
    return kept


def train_on_rank(rank: int, port: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = {batch_norms: train(folder / "store", batch_norms) for batch_norms in ("frozen", "train")}
    torch.save(results, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture
def store(make_store, tmp_path) -> Store:
    rng, count = np.random.default_rng(0), 4 * BATCH_SIZE
    return make_store(
        {"image_id": np.arange(count), "x": rng.normal(size=(count, 3)), "y": rng.normal(size=(count, 2))}
    )


def test_two_ranks_end_each_epoch_with_equal_networks_which_one_process_has_too(store, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(train_on_rank, (port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank_{rank}.pt") for rank in range(2))
    for batch_norms in ("frozen", "train"):
        assert len(first[batch_norms]) == 2 * EPOCHS
        for a, b in zip(first[batch_norms], second[batch_norms], strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    # The statistics of a batch are those of a rank's part of it, so only frozen batch norms are comparable.
    for found, expected in zip(first["frozen"], train(tmp_path / "store", "frozen"), strict=True):
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-10)
