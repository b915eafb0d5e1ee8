"""What a sweep costs beside its pass, and that a killed one goes on without repeating a trial.

    .venv/bin/python benchmarks/sweep_resume.py jobs/configs/cifar10_halves.yaml

Starts `ka-ray tune`, kills it (SIGKILL, with everything below it) when half of the trials have ended, starts
it again, and prints the seconds of the pass, of all trials, and how many trials ran twice.
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

from pass_scaling import below


def ended(folder: Path) -> dict[str, int]:
    """When each trial ended."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("trials/*/trial.json")}


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and all below it, as a lost machine would."""
    for one in [process.pid, *below(process.pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Start, kill, start again, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--output", default="runs/sweep")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    folder = Path(given.output)
    command = [str(Path(sys.executable).parent / "ka-ray"), "tune", given.config, "--output", given.output]
    for one in [*given.overrides, f"tune.trials={given.trials}"]:
        command += ["--set", one]
    began = time.perf_counter()
    process = subprocess.Popen(command)
    while process.poll() is None and len(ended(folder)) < given.trials // 2:
        time.sleep(0.2)
    kill(process)
    before, killed = ended(folder), time.perf_counter() - began
    print(f"killed after {killed:.1f} s with {len(before)} trials ended", flush=True)
    subprocess.run(command, check=True)
    after, sweep = ended(folder), json.loads((folder / "tune.json").read_text())
    again = sum(after[key] != when for key, when in before.items())
    seconds = (killed - sweep["pass_seconds"]) + sweep["search_seconds"]
    print(
        f"pass_seconds={sweep['pass_seconds']:.1f} second_half_seconds={sweep['search_seconds']:.1f} "
        f"trials={len(after)} ran_twice={again}; trials, one start of Ray, reading: {seconds:.1f} s "
        f"= {seconds / sweep['pass_seconds']:.2f} x the pass"
    )


if __name__ == "__main__":
    main()
