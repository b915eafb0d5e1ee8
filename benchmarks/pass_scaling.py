"""How time and memory of the one pass grow with the number of images.

    .venv/bin/python benchmarks/pass_scaling.py jobs/configs/cifar10_halves.yaml --images 5000 20000

Runs the pass of `ka-ray tune` (all stacked channels, every layer's sums) in a process of its own for each
number of images, and prints seconds and the peak memory of that process and all below it (proportional set
size). None warms anything up for the next: every process starts a Ray of its own.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from ka_ray.config import Config
from ka_ray.runs.prologue import plan_run, start_run
from ka_ray.runs.statistics import sum_up
from ka_ray.student.from_moments import LayerMomentsMeter

SAMPLE_EVERY_S = 0.5


def one_pass(config_path: str, images: int, overrides: list[str]) -> None:
    """Run the pass here; print its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        more = [f"extract.images={images}", f"output={folder}/run", "tracking.backend=none"]
        config = Config.load(config_path, [*overrides, *more])
        with start_run(plan_run(config)) as run:
            stacked = {tap: shape[0] for tap, shape in run.plan.shapes.items()}
            make_meter = partial(LayerMomentsMeter, run.plan.spec, stacked, config.layers.positions_per_image)
            _, summary = sum_up(run, "one_pass", make_meter)
    print(f"pass_seconds={summary['seconds']:.2f} pass_bytes={summary['bytes']}")


def measured(command: list[str]) -> tuple[float, int, float]:
    """Run a command; give the seconds and bytes that it prints, and the peak memory of its tree in MiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(memory, [process.pid, *below(process.pid)])))
        time.sleep(SAMPLE_EVERY_S)
    assert process.stdout is not None
    text = process.stdout.read()
    if process.returncode:
        raise SystemExit(text)
    fields = dict(word.split("=") for word in text.split() if "=" in word)
    return float(fields["pass_seconds"]), int(fields["pass_bytes"]), peak / 1024**2


def below(root: int) -> list[int]:
    """Find all processes below one."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = list[int](), [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found, waiting = found + new, waiting + new
    return found


def memory(process: int) -> int:
    """Read the proportional set size of a process in bytes; 0 where it has just ended."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def main() -> None:
    """Measure every number of images, in turn, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        return one_pass(given.config, given.here, given.overrides)
    overrides = [word for one in given.overrides for word in ("--set", one)]
    found: dict[int, list[tuple[float, int, float]]] = {images: [] for images in given.images}
    for _ in range(given.repeat):
        for images in given.images:
            command = [sys.executable, str(Path(__file__)), given.config, "--here", str(images), *overrides]
            found[images].append(measured(command))
            seconds, num_bytes, peak = found[images][-1]
            print(f"images={images} seconds={seconds:.1f} peak_mib={peak:.0f} bytes={num_bytes}", flush=True)
    medians = {n: [statistics.median(one[i] for one in runs) for i in range(3)] for n, runs in found.items()}
    first, last = medians[given.images[0]], medians[given.images[-1]]
    print(
        f"{given.images[-1] / given.images[0]:g} x the images: {last[0] / first[0]:.2f} x the time, "
        f"{last[2] / first[2]:.2f} x the peak memory, {last[1] / first[1]:g} x the bytes (medians)"
    )
    return None


if __name__ == "__main__":
    main()
