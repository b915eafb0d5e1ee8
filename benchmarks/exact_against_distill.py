"""Compare a student that is computed without gradient steps with distillation, in accuracy and time.

    .venv/bin/python benchmarks/exact_against_distill.py --seeds 3 --output runs/exact_against_distill

Both are run as a user would, with `ka-ray run`. The time goes from the command to the finished student: it
includes the start of Python and Ray, reading the images and running the teachers, but not the evaluation.
Distillation is run with growing budgets of images, each with its own learning rate schedule, until its
accuracy on all classes reaches that of the exact student. If the largest budget does not reach it, the ratio
of the times is an upper bound. Prints every run, then the medians over the seeds. Needs the teachers of the
config (`ka-ray teach`).
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
"""No joint learning: the student is only solved by least squares."""

DISTILL = ("baseline=distill", "joint.learning_rate=0.005", "joint.temperature=4")
"""Distillation into a student of the same widths.

Its learning rate was chosen on held-out training images.
"""


def run(config: str, folder: Path, overrides: tuple[str, ...]) -> tuple[float, float, float]:
    """Run `ka-ray run` in a new folder.

    Args:
        config: Path of the config.
        folder: Output folder of the run, which must not exist.
        overrides: Keys of the config to change, as KEY=VALUE.

    Returns:
        The seconds until the student was written; its accuracy on all classes; and that of the ensemble.
    """
    if folder.exists():
        raise SystemExit(f"{folder} exists; delete it, because the time of a resumed run would be too short")
    command = [str(Path(sys.executable).parent / "ka-ray"), "run", config, "--output", str(folder)]
    for override in overrides:
        command += ["--set", override]
    start = time.time()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    # The student is written before the evaluation, which would be the same for both.
    seconds = (folder / "student.json").stat().st_mtime - start
    accuracy = json.loads((folder / "report.json").read_text())["accuracy"]
    print(f"{folder.name} seconds={seconds:.1f} union={accuracy['union']:.4f}", flush=True)
    return seconds, accuracy["union"], accuracy["ensemble"]


def main() -> None:
    """Measure every seed, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=CONFIG, help="path of the config")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    budgets = [250_000, 300_000, 400_000]
    images = "numbers of images that distillation processes, in growing order"
    parser.add_argument("--budgets", type=int, nargs="+", default=budgets, help=images)
    parser.add_argument("--output", default="runs/exact_against_distill", help="folder of all runs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    ratios, shares, folder = [], [], Path(arguments.output)
    for seed in range(arguments.seeds):
        # The same seed for both methods: they get the same images and the same teachers.
        common = (*arguments.overrides, f"seed={seed}")
        exact, union, ensemble = run(arguments.config, folder / f"exact_{seed}", (*EXACT, *common))
        shares.append(union / ensemble)
        for budget in arguments.budgets:
            distill_folder = folder / f"distill_{seed}_{budget}"
            distill, reached, _ = run(
                arguments.config, distill_folder, (*DISTILL, f"joint.images={budget}", *common)
            )
            if reached >= union:
                break
        else:
            print(f"seed {seed}: distillation does not reach {union:.4f} with {budget} images; upper bound:")
        ratios.append(exact / distill)
        print(f"seed {seed}: ratio of the times {ratios[-1]:.3f}", flush=True)
    print(f"accuracy of exact / ensemble: median {statistics.median(shares):.4f} over {len(shares)} seeds")
    print(
        f"time of exact / time of distillation to the same accuracy: median {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
