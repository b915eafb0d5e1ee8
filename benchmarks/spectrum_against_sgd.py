"""Does the spectrum predict what auto-encoders trained by gradient steps lose?

    .venv/bin/python benchmarks/spectrum_against_sgd.py jobs/configs/cifar10_halves.yaml

Measures the spectrum (one pass by Ray), stores the features of the same images, trains the auto-encoders of
every tap at three widths in this process, and prints both errors and their ratio.
"""

import argparse
from pathlib import Path

import torch

import ka_ray
from ka_ray.config import Config, with_overrides
from ka_ray.runs.prologue import plan_run, start_run
from ka_ray.runs.steps import extract
from ka_ray.stages.codes import learn_codes
from ka_ray.stages.inputs import StageInputs
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher


def main() -> None:
    """Measure, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 1.5])
    parser.add_argument("--output", default="runs/spectrum")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    given = parser.parse_args()
    own = [f"output={given.output}", "codes.solver=sgd", "codes.basis=principal", "ray.workers=1"]
    config = Config.load(given.config, [*given.overrides, *own])
    spectrum = ka_ray.measure_spectrum(config)
    with start_run(plan_run(config)) as run:
        extract(run)
    teachers, worst = [load_teacher(teacher) for teacher in run.config.teachers], 0.0
    for factor in given.factors:
        widths = {tap: round(factor * width) for tap, width in run.plan.spec.widths.items()}
        tried = with_overrides(run.config, [f"codes.widths={widths}"])
        folder = Path(given.output)
        inputs = StageInputs(
            tried, make_plan(tried, teachers), folder, folder, torch.device("cpu"), lambda p: None
        )
        _, summary = learn_codes(inputs)
        for tap, errors in summary["taps"].items():
            predicted = spectrum.taps[tap].relative_errors[errors["width"]]
            ratio = errors["relative_error"] / predicted
            print(
                f"tap={tap} width={errors['width']} trained={errors['relative_error']:.4g} "
                f"predicted={predicted:.4g} ratio={ratio:.3f}",
                flush=True,
            )
            worst = max(worst, abs(ratio - 1)) if predicted > 1e-4 else worst
    print(f"largest deviation where more than 1e-4 of the variance is lost: {worst:.1%}")


if __name__ == "__main__":
    main()
