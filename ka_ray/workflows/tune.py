"""`ka-ray tune`: search for widths, with students that one pass over the images makes cheap to compute."""

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import yaml

from ka_ray.amalgamation import METHODS
from ka_ray.config import Config, EnergyWidths, with_overrides, without_job_folder
from ka_ray.distributed.resource_plan import check_trial_fits
from ka_ray.errors import InputError
from ka_ray.features.store import IMAGES
from ka_ray.images.split import ImageSet, check_batches, hold_out, split_for_features
from ka_ray.reports.figures import draw_tune_result
from ka_ray.reports.network_size import measure_size
from ka_ray.reports.tune import Trial, TuneResult, choose_trial, pareto_front
from ka_ray.runs.context import Run
from ka_ray.runs.execution import is_stored, store_images
from ka_ray.runs.figures import draw_or_notify
from ka_ray.runs.layer_search import SearchSpace, list_layer_widths, prepare_layer_search
from ka_ray.runs.precision import choose_precision, count_float32_bytes
from ka_ray.runs.search_space import build_search_space, list_points
from ka_ray.runs.setup import RunPlan, plan_run, start_run
from ka_ray.runs.statistics import measure_or_load_moments
from ka_ray.runs.trials import DATA, HELD_OUT, LAYER_MOMENTS, run_trials
from ka_ray.stages.trial_solvers import LayersSolver, MomentsSolver, TrialSolver
from ka_ray.storage.files import write_text
from ka_ray.student import Student
from ka_ray.student.block_solver import BlockSolverSettings
from ka_ray.student.from_moments import LayerMoments, LayerMomentsMeter, build_full_width_student
from ka_ray.student.plan import Plan
from ka_ray.teachers.reading import ReadSpec

TUNE_RUN = "mlflow_tune.json"


def search_widths(config: Config) -> TuneResult:
    """Search for the widths with the best trade-off between agreement and cost; no labels are needed.

    Of a family, every trial is a student that is computed from the same sums over one pass: its codes are
    chosen stacked channels, and each layer is solved by least squares, with one code as input and the next
    one as target. Of any other network, every trial is solved as by ``student.start: exact``.
    With ``tune.learning_rates`` joint learning follows. Agreement is measured on held-out images. Finished
    trials are kept: the same call again runs only the others.

    Args:
        config: The run; its ``tune`` section says what is tried.

    Returns:
        All trials, the Pareto front and the choice. The output folder also holds ``tune.json``, ``tune.md``,
        a figure, and ``best.yaml`` for :func:`ka_ray.amalgamate`.

    Raises:
        InputError: Something in the config cannot work.
    """
    if config.scores.gated:
        raise InputError(
            f"scores.gate: {config.scores.gate}: a search goes by the scores as they are; leave it out here"
        )
    if config.scores.descriptive is not None:
        raise InputError("scores.descriptive: a search learns no gate that could use it; leave it out here")
    by_layer = prepare_layer_search(config)
    return _search_taps(config) if by_layer is None else _search_layers(by_layer)


def _search_taps(config: Config) -> TuneResult:
    """Search for the widths of a family's taps, with students that are computed from moments of codes."""
    if isinstance(config.codes.widths, EnergyWidths):
        raise InputError("codes.widths.energy: a search starts from widths; give them as TAP: channels")
    if "start" not in config.student.model_fields_set:
        config = with_overrides(config, ["student.start=random"])
    if config.student.start != "random":
        raise InputError(
            "student.start: a search over taps computes its students from codes; set it to random or exact"
        )
    planned = _hold_out_for_trials(plan_run(config))
    plan, stacked = planned.plan, {tap: shape[0] for tap, shape in planned.plan.shapes.items()}
    whole = build_full_width_student(plan.spec, stacked).spec
    searched = _list_tap_widths(config, plan)
    with start_run(planned, "_tune", TUNE_RUN, check_trial_fits) as run:
        make_meter = partial(LayerMomentsMeter, plan.spec, stacked, config.layers.positions_per_image)
        sums, summary = measure_or_load_moments(run, LAYER_MOMENTS, make_meter)
        if config.tune.learning_rates:
            _store_scores(run, run.training_images, f"{DATA}/{IMAGES}")
        solver = MomentsSolver(LayerMoments(whole, sums).with_channel_order())
        return _run_and_publish(run, solver, searched, summary["seconds"])


def _search_layers(config: Config) -> TuneResult:
    """Search for the widths of any network's layers, with students that are solved layer by layer."""
    # Checked as a run's student is, so that a network that cannot be solved is refused before it starts.
    planned = _hold_out_for_trials(plan_run(config, students=[()]))
    searched = list_layer_widths(config, planned.plan)
    with start_run(planned, "_tune", TUNE_RUN, check_trial_fits) as run:
        began, limit = time.perf_counter(), BlockSolverSettings().images
        # Joint learning, if there is any, learns from all images.
        images = (
            run.training_images
            if config.tune.learning_rates
            else split_for_features(run.training_images, limit, config.seed)[0]
        )
        _store_scores(run, images, f"{DATA}/{IMAGES}", with_teacher_images=True)
        return _run_and_publish(run, LayersSolver(run.plan.spec), searched, time.perf_counter() - began)


def _run_and_publish(run: Run, solver: TrialSolver, searched: SearchSpace, pass_seconds: float) -> TuneResult:
    """Run the trials, and publish their result."""
    _store_scores(run, run.evaluation_images, HELD_OUT)
    began = time.perf_counter()
    trials, failed = run_trials(run, solver, searched.space, searched.points)
    return _publish(run, trials, failed, pass_seconds, time.perf_counter() - began)


def _hold_out_for_trials(planned: RunPlan) -> RunPlan:
    """Hold out training images to judge the trials: a choice must not be made on evaluation images."""
    config = planned.config
    computed_from, held_out = hold_out(
        planned.training_images, config.tune.holdout, config.seed + 3, "tune.holdout"
    )
    if config.tune.learning_rates:
        check_batches(config, computed_from)
    return replace(planned, training_images=computed_from, evaluation_images=held_out)


def _list_tap_widths(config: Config, plan: Plan) -> SearchSpace:
    """Return what may be tried, and the points to try."""
    own_widths, spans = dict(plan.spec.widths), METHODS[config.codes.method].spans
    space = build_search_space(
        config.tune, own_widths, {tap: spans(plan.channels[tap])[0] for tap in own_widths}
    )
    if config.tune.algorithm == "optuna":
        return SearchSpace(space, None)
    return SearchSpace(space, list_points(config.tune, space, own_widths, config.seed))


def _store_scores(run: Run, images: ImageSet, name: str, with_teacher_images: bool = False) -> None:
    """Store images and the teachers' scores in a folder of the output folder."""
    needs_images = with_teacher_images or run.config.joint.augment.on
    stored = run.plan.views.other_columns if needs_images else ()
    if is_stored(run.folder / name):
        return
    read_spec = ReadSpec({}, {}, run.config.scores, run.plan.views.teacher_columns, stored)
    read_spec = choose_precision(run, read_spec)
    row_bytes = run.plan.image_bytes(stored) + count_float32_bytes(run.plan, read_spec)
    store_images(run, images, run.folder / name, row_bytes, run.config.teachers, read_spec)


def _publish(
    run: Run, trials: list[Trial], failed: dict[str, str], pass_seconds: float, search_seconds: float
) -> TuneResult:
    """Write the table, the figure and the config of the chosen student, and log them."""
    config, folder, cost = run.config, run.folder, run.config.tune.cost
    if not trials:
        raise InputError(f"every trial failed: {next(iter(failed.values()))}")
    image = torch.zeros(1, *run.plan.views.student.shape)
    budget = config.tune.budget or getattr(measure_size(Student(run.plan.spec).eval(), image), cost)
    front = pareto_front(trials, cost)
    chosen = choose_trial(front, cost, budget)
    result = TuneResult(
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
    result.save(folder)
    figures = folder / "figures"
    drawn = draw_or_notify(lambda: draw_tune_result(result.model_dump(), figures), figures, run.warn)
    files = [folder / "tune.json", folder / "tune.md", *drawn]
    if chosen is not None:
        files.append(folder / "best.yaml")
        write_text(files[-1], yaml.safe_dump(build_run_config(config, chosen), sort_keys=False))
        run.tracker.log_metrics({"tune/agreement": chosen.agreement, f"tune/{cost}": getattr(chosen, cost)})
    for path in files:
        run.tracker.log_artifact(path)
    return result


def build_run_config(config: Config, trial: Trial) -> dict[str, Any]:
    """Build the config of a run that learns a student with a trial's widths.

    Args:
        config: The config of the search.
        trial: The trial to take over.

    Returns:
        The content of a YAML file: the stages of ``config`` with the trial's widths, ridge and learning rate.
    """
    tree: dict[str, Any] = without_job_folder(
        config.model_dump(mode="json", exclude={"output", "tune", "baseline", "extend"}, exclude_none=True)
    )
    tree["name"] = f"{config.name}_tuned"
    if config.student.widths is not None:
        del tree["codes"], tree["layers"]  # a solved student uses neither
        tree["student"] |= {"start": "exact", "widths": trial.widths}
    else:
        # As in the trials: codes are chosen channels, and layers are solved.
        codes = {"method": "direct", "solver": "exact", "basis": "channels", "widths": trial.widths}
        tree["codes"] |= codes
        tree["layers"] |= {"solver": "least_squares"}
        tree["layers"] |= {} if trial.ridge is None else {"ridge": trial.ridge}
    if trial.learning_rate is not None:
        tree["joint"] |= {"learning_rate": trial.learning_rate}
    return tree
