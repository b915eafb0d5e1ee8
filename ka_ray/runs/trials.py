"""Run the trials of a search for widths on Ray workers, and save each result as a file and in the tracker."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ka_ray.config import Config
from ka_ray.distributed.trials import Search, search
from ka_ray.features.store import DONE, IMAGES
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.summaries import read_model
from ka_ray.reports.tune import Trial
from ka_ray.runs.context import Run
from ka_ray.runs.output_folder import load_run_id, save_run_id
from ka_ray.runs.search_space import Point, trial_key, widths_of_point
from ka_ray.stages.inputs import StageInputs
from ka_ray.stages.trial import TrialStudent, run_trial
from ka_ray.stages.trial_solvers import TrialSolver
from ka_ray.storage.files import make_folder, read_json, write_json
from ka_ray.student import Student
from ka_ray.student.plan import Plan

DATA, TRIALS = "tune", "trials"
"""Subfolders of the output folder: the moments and images that all trials use, and one folder per trial."""

LAYER_MOMENTS, HELD_OUT = f"{DATA}/one_pass", f"{DATA}/held_out"
"""Subfolders with the moments from which all students are computed, and with the held-out images on which
the agreement of each student is measured."""


@dataclass(frozen=True)
class TrialContext:
    """What every trial needs; Ray's object store holds one copy per node.

    Attributes:
        config: The config of the search.
        plan: The networks as configured; a trial changes only the widths.
        folder: The output folder.
        solver: Computes every student.
    """

    config: Config
    plan: Plan
    folder: Path
    solver: TrialSolver


def run_trials(
    run: Run, solver: TrialSolver, space: Mapping[str, Any], points: list[Point] | None
) -> tuple[list[Trial], dict[str, str]]:
    """Run the trials that have not finished yet.

    Args:
        run: The run.
        solver: Computes every student.
        space: The search space: key of a point (such as ``width.conv1``) -> the values to try.
        points: The points to try; None lets Optuna propose ``tune.trials`` of them.

    Returns:
        All finished trials, including those of earlier attempts; and for the failed ones, point as text ->
        error message.
    """
    config, folder = run.config, run.folder / TRIALS
    done = {path.parent.name: read_model(Trial, path) for path in folder.glob("*/trial.json")}
    waiting = None if points is None else [point for point in points if trial_key(point) not in done]
    num_left = config.tune.trials - len(done) if waiting is None else len(waiting)
    if done:
        run.notify(f"{len(done)} trials are finished, {max(num_left, 0)} are left")
    if num_left <= 0:
        return list(done.values()), {}
    epochs = _joint_epochs(config, run.folder) if config.tune.learning_rates else 0
    with run.display.track_images("tune", num_left, "trials") as on_trials:

        def on_trial(point: Point, result: dict[str, Any]) -> None:
            trial = _build_trial(point, result, epochs)
            if trial.key not in done:
                _save_trial(run, trial, folder / trial.key)
                done[trial.key] = trial
            on_trials(1)

        resources, max_failures = run.resources.placement.trials, config.ray.max_failures
        work = Search(
            config.tune, resources, max_failures, waiting, space, num_left, epochs, config.seed, run.folder
        )
        failed = search(work, run_point, TrialContext(config, run.plan, run.folder, solver), on_trial)
    return list(done.values()), failed


def _joint_epochs(config: Config, folder: Path) -> int:
    """Return how many epochs of joint learning a trial has; the last one may be incomplete."""
    if config.joint.images is None:
        return config.joint.epochs
    stored = int(read_json(folder / DATA / IMAGES / DONE, images=int)["images"])
    images_per_epoch = stored // config.joint.batch_size * config.joint.batch_size
    return math.ceil(config.joint.images / images_per_epoch)


def run_point(
    point: Point, device: torch.device, report: Callable[[dict[str, Any]], None], context: TrialContext
) -> None:
    """Run one trial in a worker. If the trial has finished before, only report its saved result again.

    Args:
        point: The widths and other values to try, by key.
        device: The device of the worker.
        report: Called with the results after every epoch of joint learning; without joint learning, once.
        context: What all trials share.
    """
    folder = context.folder / TRIALS / trial_key(point)
    if (folder / "trial.json").exists():  # Optuna may propose a point twice
        return report(read_json(folder / "trial.json"))
    widths, ridge, rate = widths_of_point(point), point.get("ridge"), point.get("learning_rate")
    spec = context.solver.build_spec(widths)
    image = torch.zeros(1, *spec.view.shape)
    size = measure_size(Student(spec).eval(), image)
    costs = {"parameters": size.parameters, "macs": size.macs}
    data = context.folder / DATA
    inputs = StageInputs(context.config, context.plan, data, folder, device, lambda progress: None)
    student = TrialStudent(widths, ridge, rate, folder)
    held_out = context.folder / HELD_OUT
    run_trial(student, context.solver, inputs, held_out, lambda result: report(result | costs))
    return None


def _build_trial(point: Point, result: Mapping[str, Any], epochs: int) -> Trial:
    return Trial(
        key=trial_key(point),
        widths=widths_of_point(point),
        ridge=point.get("ridge"),
        learning_rate=point.get("learning_rate"),
        **{key: result[key] for key in ("agreement", "parameters", "macs", "seconds", "epochs")},
        stopped=result["epochs"] < epochs,
    )


def _save_trial(run: Run, trial: Trial, folder: Path) -> None:
    """Save a finished trial in its folder, for later attempts, and as a child run in the tracker."""
    make_folder(folder)
    child = run.tracker.child(trial.key, load_run_id(folder))
    save_run_id(folder, child.run_id)
    values = trial.model_dump()
    widths = {f"width.{tap}": width for tap, width in trial.widths.items()}
    child.log_params(widths | {key: values[key] for key in ("ridge", "learning_rate", "stopped")})
    measured = ("agreement", "parameters", "macs", "seconds", "epochs")
    child.log_metrics({f"tune/{key}": values[key] for key in measured})
    child.finish(failed=False)
    # Written last: a trial that has this file is never run again.
    write_json(folder / "trial.json", values)
