"""Measure the steps of joint learning against a bare loop of PyTorch, in one process and in two.

    .venv/bin/python benchmarks/train.py [--full] [--rounds N] [--output DIR]

Uses no Ray: the training loop runs here as in a training worker. Each measurement runs in processes of its
own; ours and its twin, the same network, loss, optimizer and batches in a plain loop, take turns. Two
processes have one thread each and learn data-parallel, with DistributedDataParallel in both cases. Starting
the processes and the first epoch are not counted. Memory is the peak of the first process.
"""

import functools
import json
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from joint_loops import Work, learn_bare, learn_jointly, make_store
from twins import Row, measure_in_turns, publish, read_arguments

CPU = torch.device("cpu")
PLAIN = (("widths", (32, 64, 128, 256)),)
CASES = {
    "plain, 32 px": Work("plain", 32, batch=64, rows=1024, arguments=PLAIN),
    "EfficientNet-Lite0, 96 px": Work("timm/tf_efficientnet_lite0", 96, batch=32, rows=96, epochs=2),
}
LARGER = {
    "plain, 32 px": Work("plain", 32, batch=64, rows=4096, arguments=PLAIN),
    "EfficientNet-Lite0, 96 px": Work("timm/tf_efficientnet_lite0", 96, batch=32, rows=256),
    "EfficientNet-Lite0, 128 px": Work("timm/tf_efficientnet_lite0", 128, batch=32, rows=128),
}
"""With --full."""

LOOPS: dict[str, Callable[..., float]] = {
    "ours": learn_jointly,
    "bare": learn_bare,
    "bare, channels last": functools.partial(learn_bare, memory=torch.channels_last),
}
"""Ours and its twins; maps in channels-last format are what our loop gives to layers, too."""


def measure(loop: str, work: Work, processes: int, peaks: dict[str, list[float]], folder: Path) -> float:
    """Return images/s of a loop in processes of its own, and add the peak memory of the first one, in MiB."""
    store, result = folder / f"{work.network.replace('/', '_')}_{work.size}_{work.rows}", folder / "result"
    make_store(store, work)
    meeting = Path(tempfile.mkdtemp(dir=folder)) / "meeting"
    arguments = (loop, work, processes, store, result, meeting)
    torch.multiprocessing.spawn(run_rank, args=arguments, nprocs=processes)
    found: dict[str, Any] = json.loads(result.read_text())
    peaks.setdefault(loop, []).append(found["peak_mib"])
    rate: float = found["rate"]
    return rate


def run_rank(
    rank: int, loop: str, work: Work, processes: int, store: Path, result: Path, meeting: Path
) -> None:
    """Run a loop as one of several processes; the first one writes the result."""
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of both loops
    if processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
        )
    rate = LOOPS[loop](work, make_store(store, work), CPU)
    if processes > 1:
        torch.distributed.destroy_process_group()
    if rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result.write_text(json.dumps({"rate": rate, "peak_mib": peak}))


def main() -> None:
    """Measure all cases, in one process and in two."""
    arguments = read_arguments(__doc__)
    cases, rows = LARGER if arguments.full else CASES, list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        for label, work in cases.items():
            for processes, twin in ((1, "bare"), (1, "bare, channels last"), (2, "bare")):
                peaks: dict[str, list[float]] = {}
                ours, bare = (
                    functools.partial(measure, loop, work, processes, peaks, Path(folder))
                    for loop in ("ours", twin)
                )
                name = f"{label}, {processes} process{'es' if processes > 1 else ''}, {twin}"
                [row] = measure_in_turns({name: (ours, bare)}, arguments.rounds)
                memory = max(peaks["ours"]) / max(peaks[twin])
                print(f"{name}: peak memory {memory:.2f} times that of the twin")
                rows.append(row | {"memory_ratio": memory})
    publish("train", "images/s", rows, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
