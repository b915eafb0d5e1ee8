"""`ka-ray tune`: search for widths, with students that one pass over the images makes cheap to compute."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from ka_ray.amalgamation import METHODS
from ka_ray.config import Config, EnergyWidths, without_job_folder
from ka_ray.distributed.cluster import check_trial_fits
from ka_ray.distributed.teachers import ReadSpec
from ka_ray.distributed.trials import Search, search
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, IMAGES
from ka_ray.images.split import ImageSet, check_batches, hold_out
from ka_ray.reports.figures import draw_tune_result
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.tune import Trial, TuneResult, choose_trial, pareto_front
from ka_ray.runs.context import Run
from ka_ray.runs.execution import store_images
from ka_ray.runs.output_folder import load_run_id, save_run_id
from ka_ray.runs.prologue import RunPlan, plan_run, start_run
from ka_ray.runs.statistics import sum_up
from ka_ray.stages.inputs import StageInputs
from ka_ray.stages.trial import TrialStudent, run_trial
from ka_ray.storage.files import make_folder, read_json, write_json, write_text
from ka_ray.student import Student
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, build_full_width_student
from ka_ray.student.plan import Plan
from ka_ray.workflows.search_space import Point, key_of, points_of, space_of, widths_of

TUNE_RUN = "mlflow_tune.json"
DATA, TRIALS = "tune", "trials"
"""Folders of a search: its sums and images, which are not those of a run; its students."""

ONE_PASS, HELD_OUT = f"{DATA}/one_pass", f"{DATA}/held_out"


@dataclass(frozen=True)
class Shared:
    """What every trial needs; the object store holds it once."""

    config: Config
    plan: Plan
    folder: Path
    one_pass: LayerMoments


def search_widths(config: Config) -> TuneResult:
    """Search for the widths with the best trade-off between agreement and cost; no labels are needed.

    Every trial is a student that is computed from the same sums over one pass (codes are channels, layers are
    solved on codes). With ``tune.learning_rates`` joint learning follows. Agreement is measured on held-out
    images. Finished trials are kept: the same call again runs only the others.

    Args:
        config: The run; its ``tune`` section says what is tried.

    Returns:
        All trials, the Pareto front and the choice. The output folder also holds ``tune.json``, ``tune.md``,
        a figure, and ``best.yaml`` for :func:`ka_ray.amalgamate`.

    Raises:
        InputError: Something in the config cannot work.
    """
    if isinstance(config.codes.widths, EnergyWidths):
        raise InputError("codes.widths.energy: a search starts from widths; give them as TAP: channels")
    planned = _hold_out_for_trials(plan_run(config))
    plan, stacked = planned.plan, {tap: shape[0] for tap, shape in planned.plan.shapes.items()}
    whole = build_full_width_student(plan.spec, stacked).spec
    space, points = _space_and_points(config, plan)
    with start_run(planned, "_tune", TUNE_RUN, partial(check_trial_fits, config.placement)) as run:
        make_meter = partial(LayerMomentsMeter, plan.spec, stacked, config.layers.positions_per_image)
        sums, summary = sum_up(run, ONE_PASS, make_meter)
        _store_scores(run, run.evaluation_images, HELD_OUT)
        if config.tune.learning_rates:
            _store_scores(run, run.training_images, f"{DATA}/{IMAGES}")
        one_pass = LayerMoments(whole, sums).with_channel_order()
        began = time.perf_counter()
        trials, failed = _try_all(run, one_pass, space, points)
        return _publish(run, trials, failed, summary["seconds"], time.perf_counter() - began)


def _hold_out_for_trials(planned: RunPlan) -> RunPlan:
    """Hold out training images to judge the trials: a choice must not be made on evaluation images."""
    config = planned.config
    computed_from, held_out = hold_out(
        planned.training_images, config.tune.holdout, config.seed + 3, "tune.holdout"
    )
    if config.tune.learning_rates:
        check_batches(config, computed_from)
    return replace(planned, training_images=computed_from, evaluation_images=held_out)


def _space_and_points(config: Config, plan: Plan) -> tuple[dict[str, Any], list[Point] | None]:
    """Return what may be tried, and the points to try; None for Optuna, which proposes them one by one."""
    own_widths, spans = dict(plan.spec.widths), METHODS[config.codes.method].spans
    space = space_of(config.tune, own_widths, {tap: spans(plan.channels[tap])[0] for tap in own_widths})
    if config.tune.algorithm == "optuna":
        return space, None
    return space, points_of(config.tune, space, own_widths, config.seed)


def _store_scores(run: Run, images: ImageSet, name: str) -> None:
    """Store images and the teachers' scores in a folder of the output folder."""
    read_spec = ReadSpec({}, {}, run.config.scores)
    store_images(run, images, run.folder / name, run.plan.image_bytes, run.config.teachers, read_spec)


def _try_all(
    run: Run, one_pass: LayerMoments, space: Mapping[str, Any], points: list[Point] | None
) -> tuple[list[Trial], dict[str, str]]:
    """Run the trials that have not ended yet; give all that have, and what went wrong."""
    config, folder = run.config, run.folder / TRIALS
    done = {path.parent.name: Trial.model_validate(read_json(path)) for path in folder.glob("*/trial.json")}
    waiting = None if points is None else [point for point in points if key_of(point) not in done]
    left = config.tune.trials - len(done) if waiting is None else len(waiting)
    if done:
        run.notify(f"{len(done)} trials stand, {max(left, 0)} are left")
    if left <= 0:
        return list(done.values()), {}
    epochs = 0 if not config.tune.learning_rates else _joint_epochs(config, run.folder)
    with run.display.track_images("tune", left, "trials") as on_trials:

        def on_trial(point: Point, result: dict[str, Any]) -> None:
            trial = _trial(point, result, epochs)
            if trial.key not in done:
                _save_trial(run, trial, folder / trial.key)
                done[trial.key] = trial
            on_trials(1)

        share, tries = config.placement.trials, config.ray.max_failures
        work = Search(config.tune, share, tries, waiting, space, left, epochs, config.seed, run.folder)
        failed = search(work, run_point, Shared(config, run.plan, run.folder, one_pass), on_trial)
    return list(done.values()), failed


def _joint_epochs(config: Config, folder: Path) -> int:
    if config.joint.images is None:
        return config.joint.epochs
    stored = int(read_json(folder / DATA / IMAGES / DONE)["images"])
    return -(-config.joint.images // (stored // config.joint.batch_size * config.joint.batch_size))


def run_point(
    point: Point, device: torch.device, tell: Callable[[dict[str, Any]], None], shared: Shared
) -> None:
    """Run one trial in a worker; one that has ended is told again, not run again."""
    folder = shared.folder / TRIALS / key_of(point)
    if (folder / "trial.json").exists():
        return tell(read_json(folder / "trial.json"))
    widths, ridge, rate = widths_of(point), point.get("ridge"), point.get("learning_rate")
    spec = replace(shared.one_pass.spec, widths=widths)
    image = torch.zeros(1, 3, spec.image_size, spec.image_size)
    size = measure_size(Student(spec).eval(), image)
    costs = {"parameters": size.parameters, "macs": size.macs}
    data = shared.folder / DATA
    inputs = StageInputs(shared.config, shared.plan, data, folder, device, lambda progress: None)
    tried = TrialStudent(widths, ridge, rate, folder)
    run_trial(tried, shared.one_pass, inputs, shared.folder / HELD_OUT, lambda told: tell(told | costs))
    return None


def _trial(point: Point, result: Mapping[str, Any], epochs: int) -> Trial:
    return Trial(
        key=key_of(point),
        widths=widths_of(point),
        ridge=point.get("ridge"),
        learning_rate=point.get("learning_rate"),
        **{key: result[key] for key in ("agreement", "parameters", "macs", "seconds", "epochs")},
        stopped=result["epochs"] < epochs,
    )


def _save_trial(run: Run, trial: Trial, folder: Path) -> None:
    """Keep a trial for a later attempt, and as a child of the search in the tracker."""
    make_folder(folder)
    child = run.tracker.child(trial.key, load_run_id(folder))
    save_run_id(folder, child.run_id)
    given = trial.model_dump()
    widths = {f"width.{tap}": width for tap, width in trial.widths.items()}
    child.log_params(widths | {key: given[key] for key in ("ridge", "learning_rate", "stopped")})
    measured = ("agreement", "parameters", "macs", "seconds", "epochs")
    child.log_metrics({f"tune/{key}": given[key] for key in measured})
    child.finish(failed=False)
    write_json(folder / "trial.json", given)


def _publish(
    run: Run, trials: list[Trial], failed: dict[str, str], pass_seconds: float, search_seconds: float
) -> TuneResult:
    """Write table, figure and the chosen student's config; hand all to the tracker."""
    config, folder, cost = run.config, run.folder, run.config.tune.cost
    if not trials:
        raise InputError(f"every trial failed: {next(iter(failed.values()))}")
    image = torch.zeros(1, 3, config.images.size, config.images.size)
    budget = config.tune.budget or getattr(measure_size(Student(run.plan.spec).eval(), image), cost)
    front = pareto_front(trials, cost)
    chosen = choose_trial(front, cost, budget)
    sweep = TuneResult(
        name=config.name,
        cost=cost,
        budget=budget,
        images=len(run.evaluation_images.ids),
        pass_seconds=pass_seconds,
        search_seconds=search_seconds,
        failed=failed,
        trials=trials,
        front=[trial.key for trial in front],
        chosen=None if chosen is None else chosen.key,
    )
    sweep.save(folder)
    files = [
        folder / "tune.json",
        folder / "tune.md",
        *draw_tune_result(sweep.model_dump(), folder / "figures"),
    ]
    if chosen is not None:
        files.append(folder / "best.yaml")
        write_text(files[-1], yaml.safe_dump(ready_config(config, chosen), sort_keys=False))
        run.tracker.log_metrics({"tune/agreement": chosen.agreement, f"tune/{cost}": getattr(chosen, cost)})
    for path in files:
        run.tracker.log_artifact(path)
    return sweep


def ready_config(config: Config, trial: Trial) -> dict[str, Any]:
    """Write the config of a run that learns a student of a trial's widths, with the stages of the config."""
    left_out = {"output", "tune", "baseline", "extend"}
    tree: dict[str, Any] = without_job_folder(
        config.model_dump(mode="json", exclude=left_out, exclude_none=True)
    )
    tree["name"] = f"{config.name}_tuned"
    codes = {"method": "direct", "solver": "exact", "basis": "channels", "widths": trial.widths}
    tree["codes"] |= codes
    tree["layers"] |= {"solver": "least_squares"} | ({} if trial.ridge is None else {"ridge": trial.ridge})
    if trial.learning_rate is not None:
        tree["joint"] |= {"learning_rate": trial.learning_rate}
    return tree
