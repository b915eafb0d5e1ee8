"""Replace a share of the variance, as ``student.widths``, by the widths that keep it."""

import dataclasses

import torch

from ka_ray.config import EnergyWidths
from ka_ray.runs.context import Run
from ka_ray.runs.execution import train
from ka_ray.stages.inputs import StageInputs
from ka_ray.stages.student_widths import layer_widths_path, measure_layer_widths
from ka_ray.storage.files import read_json
from ka_ray.student.plan import make_plan
from ka_ray.teachers.on_demand import TeachersOnDemand
from ka_ray.training.fit import ProgressCallback


def resolve_student_widths(run: Run) -> Run:
    """Replace ``student.widths: {energy: SHARE}`` by the widths that keep this share of the variance.

    They are measured on stored images, and saved in the output folder, so that a resumed run has the same.

    Args:
        run: The run, whose images have been extracted.

    Returns:
        The run with widths by layer in its config and its plan; the same run if they were given.
    """
    rule = run.config.student.widths
    if not isinstance(rule, EnergyWidths):
        return run
    # The workers get these, but not the run, which holds connections of the driver.
    config, plan, folder = run.config, run.plan, run.folder
    path = layer_widths_path(folder)
    if not path.exists():

        def measure(device: torch.device, report: ProgressCallback) -> None:
            measure_layer_widths(StageInputs(config, plan, folder, folder, device, report))

        train(run, f"student.widths: measuring what {rule.energy:g} of the features' variance takes", measure)
    widths = read_json(path)
    listed = ", ".join(f"{name} {width}" for name, width in widths.items())
    run.notify(f"student.widths: {rule.energy:g} of the variance takes {listed}")
    student = config.student.model_copy(update={"widths": widths})
    resolved = config.model_copy(update={"student": student})
    teachers = TeachersOnDemand(config.teachers)
    return dataclasses.replace(run, config=resolved, plan=make_plan(resolved, teachers))
