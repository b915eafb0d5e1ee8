"""Check that a killed `ka-ray tune` resumes without repeating a trial, and measure what the trials cost.

    .venv/bin/python benchmarks/tune_resume.py jobs/configs/cifar10_halves.yaml

Starts `ka-ray tune`, kills it and all its descendants with SIGKILL when half of the trials have ended, and
starts it again. Prints the seconds of the pass over the images and of all trials, and how many trials ran
twice.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pass_scaling import find_descendants


def read_end_times(folder: Path) -> dict[str, int]:
    """Return the key of every trial that has ended -> when, in nanoseconds."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/trial.json")}


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all its descendants, as the loss of the machine would."""
    for pid in [process.pid, *find_descendants(process.pid)]:
        with contextlib.suppress(ProcessLookupError):  # it may have ended with its parent
            os.kill(pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Start a search, kill it, start it again, and count the trials that ran twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument("--trials", type=int, default=24, help="number of trials")
    parser.add_argument("--output", default="runs/tune_resume", help="output folder, which must not exist")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    command = [
        str(Path(sys.executable).parent / "ka-ray"),
        "tune",
        arguments.config,
        "--output",
        arguments.output,
    ]
    for override in [*arguments.overrides, f"tune.trials={arguments.trials}"]:
        command += ["--set", override]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    while process.poll() is None and len(read_end_times(folder)) < arguments.trials // 2:
        time.sleep(0.2)
    # Trials that end between the count and the kill are in `before`, too: it is read after the kill.
    kill(process)
    before, killed = read_end_times(folder), time.perf_counter() - start
    print(f"killed after {killed:.1f} s with {len(before)} trials ended", flush=True)
    subprocess.run(command, check=True)
    after, result = read_end_times(folder), json.loads((folder / "tune.json").read_text())
    repeated = sum(after[key] != when for key, when in before.items())
    # Before the kill, the pass ran first. The rest of that time went to starting Ray, listing the images,
    # loading the teachers, and the first half of the trials.
    seconds = (killed - result["pass_seconds"]) + result["search_seconds"]
    print(
        f"pass_seconds={result['pass_seconds']:.1f} second_half_seconds={result['search_seconds']:.1f} "
        f"trials={len(after)} ran_twice={repeated}; all trials and one start of the run: {seconds:.1f} s "
        f"= {seconds / result['pass_seconds']:.2f} x the pass"
    )


if __name__ == "__main__":
    main()
