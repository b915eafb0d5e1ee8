"""Test that moments merged over a gloo group equal those of one process, in memory that no rank adds to.

``pytest -s`` prints the peak of the worst rank above what it held before.
"""

import multiprocessing
import resource
import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from ka_ray.numerics.moments import Moments, MomentsMeter

CHANNELS = 2508
"""S: a `[S, S]` matrix in float64 takes 48 MiB."""

MATRIX = 8 * CHANNELS**2

FIXED = 40 * 2**20
"""Bytes that do not depend on S: buffers of gloo, and code that is loaded on the way."""


def make_rows(rank: int) -> torch.Tensor:
    """Return a rank's rows, whose number, mean and deviation differ from rank to rank; rank 1 has none."""
    generator = torch.Generator().manual_seed(rank)
    count = 0 if rank == 1 else 20 + 3 * rank
    rows = torch.randn(count, CHANNELS, generator=generator, dtype=torch.float64)
    return 100 * rank + (1 + rank) * rows


def merge_on_rank(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    rows = make_rows(rank)
    dist.all_reduce(torch.zeros(1))  # opens the connections
    held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    meter = MomentsMeter(CHANNELS)
    meter.add(rows)
    merged = meter.total.merge_over_ranks()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
    assert torch.equal(merged.scatter, merged.scatter.T)
    few = merged.scatter[:: CHANNELS // 50].clone()
    torch.save({"moments": (merged.count, merged.mean, few), "peak": peak}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4, pytest.param(8, marks=pytest.mark.slow)])
def test_merging_over_ranks_equals_one_process_and_takes_three_matrices(world, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.set_forkserver_preload(["torch"])  # imports it once, not once per rank
    arguments = (world, port, tmp_path)
    start_processes(merge_on_rank, arguments, nprocs=world, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    peak = max(part["peak"] for part in found)
    print(f"{world} ranks: {peak / 2**20:.0f} MiB = {peak / MATRIX:.2f} matrices")
    # The sums of the meter, its total, and the merged matrix.
    assert peak < 3 * MATRIX + FIXED

    expected = Moments.of(torch.cat([make_rows(rank) for rank in range(world)]))
    for part in found:
        count, mean, few = part["moments"]
        assert count == expected.count
        torch.testing.assert_close(mean, expected.mean, rtol=1e-13, atol=1e-11)
        # Means of ranks are hundreds of deviations apart, so a wrong formula is far off.
        rows = expected.scatter[:: CHANNELS // 50]
        torch.testing.assert_close(few, rows, rtol=1e-10, atol=1e-10 * float(rows.abs().max()))
        assert torch.equal(few, found[0]["moments"][2])


def test_moments_of_no_rows_are_empty_and_change_nothing():
    none, some = Moments.of(torch.zeros(0, 3)), Moments.of(torch.randn(5, 3))
    assert none.count == 0
    assert torch.equal(none.mean, torch.zeros(3, dtype=torch.float64))
    for merged in (none.merge(some), some.merge(none)):
        assert merged is some
