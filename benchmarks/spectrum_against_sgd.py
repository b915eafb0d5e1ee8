"""Compare the loss that the spectrum predicts with that of auto-encoders trained by gradient steps.

    .venv/bin/python benchmarks/spectrum_against_sgd.py jobs/configs/cifar10_halves.yaml

Measures the spectrum in one pass on Ray, stores the features of the same images, trains the auto-encoders of
every tap at several widths in this process, and prints both losses and their ratio.
"""

import argparse
from pathlib import Path

import torch

import ka_ray
from ka_ray.config import Config, with_overrides
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.steps import extract
from ka_ray.stages.codes import learn_codes
from ka_ray.stages.inputs import StageInputs
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher


def main() -> None:
    """Measure the spectrum, train the auto-encoders, and print the losses of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    factors = "widths to train, as multiples of the widths of the config"
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 1.5], help=factors)
    parser.add_argument("--output", default="runs/spectrum", help="output folder")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    # What the spectrum predicts is the optimum in the principal basis, so this is what must be trained.
    fixed = [f"output={arguments.output}", "codes.solver=sgd", "codes.basis=principal", "ray.workers=1"]
    config = Config.load(arguments.config, [*arguments.overrides, *fixed])
    spectrum = ka_ray.measure_spectrum(config)
    with start_run(plan_run(config)) as run:
        extract(run)
    teachers, worst = [load_teacher(teacher) for teacher in run.config.teachers], 0.0
    for factor in arguments.factors:
        widths = {tap: round(factor * width) for tap, width in run.plan.spec.widths.items()}
        trained_config = with_overrides(run.config, [f"codes.widths={widths}"])
        folder = Path(arguments.output)
        inputs = StageInputs(
            trained_config,
            make_plan(trained_config, teachers),
            folder,
            folder,
            torch.device("cpu"),
            lambda progress: None,
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
            # Below 1e-4, rounding of the half-precision features is as large as the loss.
            worst = max(worst, abs(ratio - 1)) if predicted > 1e-4 else worst
    print(f"largest deviation of the ratio from 1, where more than 1e-4 of the variance is lost: {worst:.1%}")


if __name__ == "__main__":
    main()
