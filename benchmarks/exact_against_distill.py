"""A student without a gradient step beside distillation: accuracy, and the time until the student stands.

    .venv/bin/python benchmarks/exact_against_distill.py --seeds 3 --output runs/exact_against_distill

Both as a user runs them: `ka-ray run`, from the command to the finished student; starting Python and Ray,
reading the images and running the teachers are in it, judging is not. Distillation is tried with growing
budgets, each with a schedule of its own, until its union accuracy reaches that of the exact student; where
the largest does not, the ratio of the times is an upper bound. Prints every run, then medians. Needs the
teachers of the config (`ka-ray teach`).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIG = "jobs/configs/cifar10_halves_exact.yaml"
EXACT = ("joint.epochs=0",)

DISTILL = ("baseline=distill", "joint.learning_rate=0.005", "joint.temperature=4")
"""A student of the same widths; the rate was chosen on held-out training images."""


def run(config: str, folder: Path, overrides: tuple[str, ...]) -> tuple[float, float, float]:
    """Run the tool; give the seconds until the student stood, its union accuracy and the ensemble's."""
    if folder.exists():
        raise SystemExit(f"{folder}: exists; a run that goes on would be timed wrongly")
    command = [str(Path(sys.executable).parent / "ka-ray"), "run", config, "--output", str(folder)]
    for one in overrides:
        command += ["--set", one]
    began = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = (folder / "student.json").stat().st_mtime - began
    accuracy = json.loads((folder / "report.json").read_text())["accuracy"]
    print(f"{folder.name} seconds={seconds:.1f} union={accuracy['union']:.4f}", flush=True)
    return seconds, accuracy["union"], accuracy["ensemble"]


def main() -> None:
    """Measure every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[250_000, 300_000, 400_000])
    parser.add_argument("--output", default="runs/exact_against_distill")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    ratios, shares, folder = [], [], Path(given.output)
    for seed in range(given.seeds):
        more = (*given.overrides, f"seed={seed}")
        exact, union, ensemble = run(given.config, folder / f"exact_{seed}", (*EXACT, *more))
        shares.append(union / ensemble)
        for budget in given.budgets:
            place = folder / f"distill_{seed}_{budget}"
            distill, reached, _ = run(given.config, place, (*DISTILL, f"joint.images={budget}", *more))
            if reached >= union:
                break
        else:
            print(f"seed {seed}: distillation does not reach {union:.4f} with {budget} images; at most:")
        ratios.append(exact / distill)
        print(f"seed {seed}: ratio of the times {ratios[-1]:.3f}", flush=True)
    print(f"exact / ensemble: median {statistics.median(shares):.4f} of {len(shares)} seeds")
    print(f"time of exact / time of distillation until as good: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
