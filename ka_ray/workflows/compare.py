"""`ka-ray compare`: several methods side by side on the same teachers, images, budget and seeds."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ka_ray.config import Config, ScratchConfig, flatten, with_overrides
from ka_ray.distributed.evaluate import TEACHERS_ALONE
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.metrics import Counts
from ka_ray.reports.accuracy import measure_accuracy
from ka_ray.reports.comparison import Comparison, make_ensemble_rows, make_row
from ka_ray.reports.figures import draw_comparison
from ka_ray.runs.context import Run
from ka_ray.runs.output_folder import load_run_id, save_run_id
from ka_ray.runs.publish import extraction_summaries, final_metrics, stage_summaries
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.statistics import resolve_widths
from ka_ray.runs.steps import StudentJob, evaluate_students, extract, learn
from ka_ray.runs.variants import expand_variants
from ka_ray.storage.files import make_folder, read_json
from ka_ray.student import load_student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher
from ka_ray.tracking import Tracker

COMPARE_RUN = "mlflow_compare.json"


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """A student that is made by one method with one seed.

    Attributes:
        label: The method and the values of varied keys, as in the table.
        job: The student to learn.
    """

    label: str
    job: StudentJob


def compare(
    config: Config, methods: Sequence[str], num_seeds: int = 1, vary: Sequence[str] = ()
) -> Comparison:
    """Learn a student by every method and seed, and evaluate all of them in one pass over the images.

    The students of the baselines see as many images as the amalgamated student does in all its stages.
    Features and scores are extracted once. Students that the output folder already holds are not learned
    again.

    Args:
        config: The run; its ``baselines`` section says how the baselines are learned.
        methods: Names from :data:`ka_ray.runs.variants.COMPARED`.
        num_seeds: The number of seeds per method, counted up from the seed of the config.
        vary: Items ``dotted.key=value,value,...``; every method is run with each of the values.

    Returns:
        The table; the output folder also holds it as ``compare.json`` and ``compare.md``.

    Raises:
        InputError: Something in the config or the arguments cannot work.
    """
    if num_seeds < 1:
        raise InputError(f"--seeds: {num_seeds} must be 1 or more")
    config = config.model_copy(update={"baseline": None})
    overrides, seeds = expand_variants(methods, vary), range(config.seed, config.seed + num_seeds)
    variants = [with_overrides(config, change) for change in overrides.values()]
    with start_run(plan_run(config, students=variants), "_compare", COMPARE_RUN) as run:
        run = resolve_widths(run)
        extract(run, joint=any(variant.joint.any_steps for variant in variants))
        method_runs = _method_runs(run, seeds, overrides)
        with _track_children(run, method_runs) as run:
            learn(run, [one.job for one in method_runs])
            students = {one.job.name: one.job.folder for one in method_runs}
            counts, _ = evaluate_students(run, run.plan.label_sets, students)
            return _publish(run, method_runs, counts, list(seeds))


def _method_runs(run: Run, seeds: Sequence[int], overrides: Mapping[str, Sequence[str]]) -> list[MethodRun]:
    method_runs = []
    teachers = [load_teacher(teacher) for teacher in run.config.teachers]
    for label, change in overrides.items():
        plan = make_plan(with_overrides(run.config, change), teachers)
        for seed in seeds:
            config = with_overrides(run.config, [*change, f"seed={seed}", "evaluation.each_epoch=false"])
            if config.baseline is not None:
                config = _with_budget(config, run.folder)
            folder = run.folder / "methods" / re.sub(r"[^\w.=\-]", "_", label) / f"seed_{seed}"
            method_runs.append(MethodRun(label, StudentJob(f"{label} seed {seed}", config, plan, folder)))
    return method_runs


def _with_budget(config: Config, folder: Path) -> Config:
    """Let a baseline's student see as many images as the amalgamation's."""
    section: ScratchConfig = getattr(config.baselines, config.baseline or "")
    joint = section.of(config.joint, student_images(config, folder))
    return config.model_copy(update={"joint": joint})


def student_images(config: Config, folder: Path) -> int:
    """Count the images that an amalgamated student sees in its stages, from the stored sets' sizes."""
    stored = {
        part: read_json(folder / part / DONE)["images"] if (folder / part / DONE).exists() else 0
        for part in (FEATURES, IMAGES)
    }
    layers, joint = config.layers, config.joint
    fitted = layers.epochs * (stored[FEATURES] // layers.batch_size) * layers.batch_size
    in_layers = stored[FEATURES] if layers.solver == "least_squares" else fitted
    in_joint = joint.images or joint.epochs * (sum(stored.values()) // joint.batch_size) * joint.batch_size
    return int(in_layers + in_joint)


@contextmanager
def _track_children(run: Run, method_runs: Sequence[MethodRun]) -> Iterator[Run]:
    """Open a child of the tracker's run for every student; all end as failed if the block raises."""
    children: dict[str, Tracker] = {}
    failed = True
    try:
        for job in (one.job for one in method_runs):
            make_folder(job.folder)
            children[job.name] = run.tracker.child(job.name, load_run_id(job.folder))
            save_run_id(job.folder, children[job.name].run_id)
            children[job.name].log_params(flatten(job.config))
        yield dataclasses.replace(run, children=children)
        failed = False
    finally:
        for child in children.values():
            child.finish(failed)


def _publish(
    run: Run, method_runs: Sequence[MethodRun], counts: Mapping[str, Counts], seeds: list[int]
) -> Comparison:
    teachers = [teacher.name for teacher in run.config.teachers]
    rows, by_ensemble = [], dict[str, Counts]()
    for label in dict.fromkeys(one.label for one in method_runs):
        group = [one.job for one in method_runs if one.label == label]
        summaries = [stage_summaries(one.config, one.folder) for one in group]
        images = sum(one.images_seen for stage, one in summaries[0].items() if stage != "codes")
        parameters = sum(p.numel() for p in load_student(group[0].folder).parameters())
        counted = [counts[one.name] for one in group]
        seconds = [sum(one.seconds for one in stages.values()) for stages in summaries]
        rows.append(make_row(label, counted, teachers, seconds, images, parameters))
        by_ensemble.setdefault(group[0].plan.label_sets.rule_description, counted[0])
        for one in group:
            accuracy = measure_accuracy(counts[one.name], teachers)
            run.children[one.name].log_metrics(final_metrics(accuracy))
    networks = [load_teacher(teacher).network for teacher in run.config.teachers]
    total = sum(p.numel() for network in networks for p in network.parameters())
    shared = sum(part.seconds for part in extraction_summaries(run.folder))
    result = Comparison(
        name=run.config.name,
        seeds=seeds,
        rows=[*make_ensemble_rows(by_ensemble or {"": counts[TEACHERS_ALONE]}, teachers, total), *rows],
        shared_seconds=shared,
    )
    result.save(run.folder)
    figures = draw_comparison(result.model_dump(), run.folder / "figures")
    for path in (run.folder / "compare.json", run.folder / "compare.md", *figures):
        run.tracker.log_artifact(path)
    return result
