"""Measure how time and memory of the single pass over the images grow with the number of images.

    .venv/bin/python benchmarks/pass_scaling.py jobs/configs/cifar10_halves.yaml --images 5000 20000

Runs the pass of `ka-ray tune`, which sums the moments of every layer over all stacked channels, in a new
process for each number of images. Prints the seconds of the pass, and the peak memory (proportional set
size) of that process and all its descendants. Every process starts its own Ray, so no measurement profits
from the one before.
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
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.statistics import measure_or_load_moments
from ka_ray.student.from_moments import LayerMomentsMeter

SAMPLE_EVERY_S = 0.5
"""Time between two measurements of the memory, in seconds."""


def run_pass(config_path: str, images: int, overrides: list[str]) -> None:
    """Run the pass in this process, and print its duration in seconds and the size of its sums in bytes.

    Args:
        config_path: Path of the config.
        images: Number of images.
        overrides: Keys of the config to change, as KEY=VALUE.
    """
    with tempfile.TemporaryDirectory() as folder:
        fixed = [f"extract.images={images}", f"output={folder}/run", "tracking.backend=none"]
        config = Config.load(config_path, [*overrides, *fixed])
        with start_run(plan_run(config)) as run:
            stacked = {tap: shape[0] for tap, shape in run.plan.shapes.items()}
            make_meter = partial(LayerMomentsMeter, run.plan.spec, stacked, config.layers.positions_per_image)
            _, summary = measure_or_load_moments(run, "one_pass", make_meter)
    print(f"pass_seconds={summary['seconds']:.2f} pass_bytes={summary['bytes']}")


def measure_command(command: list[str]) -> tuple[float, int, float]:
    """Run a command that calls :func:`run_pass`.

    Returns:
        The duration of the pass in seconds, the size of its sums in bytes, and the peak memory of the
        command and its descendants in MiB.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(map(read_memory, [process.pid, *find_descendants(process.pid)])))
        time.sleep(SAMPLE_EVERY_S)
    assert process.stdout is not None
    text = process.stdout.read()
    if process.returncode:
        raise SystemExit(text)
    fields = dict(word.split("=") for word in text.split() if "=" in word)
    return float(fields["pass_seconds"]), int(fields["pass_bytes"]), peak / 1024**2


def find_descendants(root: int) -> list[int]:
    """Return the ids of all processes that descend from one, from ``/proc``."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the program, in brackets, may contain spaces and brackets itself.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # the process has ended in the meantime
        children.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = list[int](), [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found, waiting = found + new, waiting + new
    return found


def read_memory(process_id: int) -> int:
    """Return the proportional set size of a process, in bytes; 0 if it has just ended.

    Each page that processes share, such as Ray's object store, counts only once over all of them.
    """
    try:
        text = Path(f"/proc/{process_id}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)


def main() -> None:
    """Measure every number of images several times, and print the ratios of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument("--images", type=int, nargs="+", default=[5000, 20000], help="numbers of images")
    parser.add_argument("--repeat", type=int, default=3, help="measurements per number of images")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    # How this script calls itself: run one pass in this process.
    parser.add_argument("--in-this-process", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_this_process:
        return run_pass(arguments.config, arguments.in_this_process, arguments.overrides)
    overrides = [word for override in arguments.overrides for word in ("--set", override)]
    measured: dict[int, list[tuple[float, int, float]]] = {images: [] for images in arguments.images}
    # Each round measures every number of images, so that other load on the machine affects all of them.
    for _ in range(arguments.repeat):
        for images in arguments.images:
            command = [
                sys.executable,
                __file__,
                arguments.config,
                "--in-this-process",
                str(images),
                *overrides,
            ]
            measured[images].append(measure_command(command))
            seconds, num_bytes, peak = measured[images][-1]
            print(f"images={images} seconds={seconds:.1f} peak_mib={peak:.0f} bytes={num_bytes}", flush=True)
    medians = {
        n: [statistics.median(one[i] for one in runs) for i in range(3)] for n, runs in measured.items()
    }
    first, last = medians[arguments.images[0]], medians[arguments.images[-1]]
    print(
        f"{arguments.images[-1] / arguments.images[0]:g} x the images: {last[0] / first[0]:.2f} x the time, "
        f"{last[2] / first[2]:.2f} x the peak memory, {last[1] / first[1]:g} x the bytes (medians)"
    )
    return None


if __name__ == "__main__":
    main()
