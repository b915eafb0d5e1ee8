"""`ka-ray compare`: compare methods on the same teachers, seeds, images and number of images processed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ka_ray.config import Config, ScratchConfig, flatten, with_overrides
from ka_ray.config.ranges import MAX_SEED
from ka_ray.distributed.evaluator import TEACHERS_ONLY
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.metrics import Counts
from ka_ray.reports.accuracy import measure_accuracy
from ka_ray.reports.comparison import Comparison, make_ensemble_rows, make_row
from ka_ray.reports.figures import draw_comparison
from ka_ray.reports.labels import describe_unmatched, match_labels
from ka_ray.reports.sections import Accuracy
from ka_ray.reports.warnings import warn_of_bad_students
from ka_ray.runs.context import Run
from ka_ray.runs.evaluation import evaluate_students
from ka_ray.runs.figures import draw_or_notify
from ka_ray.runs.gates import Gates, learn_gates, resolve_gate
from ka_ray.runs.joint_defaults import choose_joint_defaults
from ka_ray.runs.learned_images import warn_of_learned_images
from ka_ray.runs.output_folder import load_run_id, save_run_id
from ka_ray.runs.publish import extraction_summaries, final_metrics, stage_summaries
from ka_ray.runs.setup import plan_run, start_run
from ka_ray.runs.statistics import resolve_widths
from ka_ray.runs.steps import StudentJob, extract, learn
from ka_ray.runs.student_widths import resolve_student_widths
from ka_ray.runs.variants import PARTS, default_methods, expand_variants, name_folders, with_one_start
from ka_ray.stages.gated_store import count_left_out
from ka_ray.stages.inputs import owners_folder
from ka_ray.stages.joint import chooses_student
from ka_ray.storage.files import make_folder, read_json
from ka_ray.student import load_student
from ka_ray.student.plan import make_plan
from ka_ray.teachers import Teacher
from ka_ray.teachers.on_demand import TeachersOnDemand
from ka_ray.tracking import Tracker
from ka_ray.training.batches import count_held_out

COMPARE_RUN = "mlflow_compare.json"
"""The file in the output folder with the id of the comparison's MLflow run."""


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """One student of the comparison: learned by one method with one seed.

    Attributes:
        label: The method and the values of the keys that are varied, as in the table's rows.
        job: The student to learn.
    """

    label: str
    job: StudentJob


def compare(
    config: Config, methods: Sequence[str] = (), num_seeds: int = 1, vary: Sequence[str] = ()
) -> Comparison:
    """Learn a student by every method and seed, and evaluate all of them in one pass over the images.

    The students of the baselines see as many images as the amalgamated student does in all its stages.
    Features and scores are extracted once. Students that the output folder already holds are not learned
    again.

    Args:
        config: The config of the run; its ``baselines`` section says how the baselines are learned.
        methods: Names from :data:`ka_ray.runs.variants.COMPARED`; empty: the parts of the run, if its
            student starts from weights, otherwise ``direct`` and ``distill``.
        num_seeds: Number of seeds per method: the seed of the config and those that follow it.
        vary: Items ``dotted.key=value,value,...``; every method is run with each of the values.

    Returns:
        The table; the output folder also holds it as ``compare.json`` and ``compare.md``.

    Raises:
        InputError: Something in the config or the arguments cannot work.
    """
    if not 1 <= num_seeds <= MAX_SEED - config.seed + 1:
        raise InputError(f"--seeds: {num_seeds} must lie in 1 ... {MAX_SEED - config.seed + 1}")
    config = with_one_start(config)
    overrides = expand_variants(methods or default_methods(config), vary)
    seeds = range(config.seed, config.seed + num_seeds)
    planned = plan_run(config, students=list(overrides.values()))
    with start_run(planned, "_compare", COMPARE_RUN) as run:
        run = resolve_widths(run)
        gates = learn_gates(run, planned.students, extract(run, planned.students))
        run = resolve_student_widths(run)
        method_runs = _method_runs(run, seeds, overrides, gates)
        with _track_children(run, method_runs) as run:
            learn(run, [one.job for one in method_runs])
            students = {one.job.name: one.job.folder for one in method_runs}
            gates = gates.used_by({one.job.name: one.job.config.scores.gate for one in method_runs})
            counts, summary = evaluate_students(run, run.plan.label_sets, students, gates)
            return _publish(run, method_runs, counts, list(seeds), _list_warnings(run, summary))


def _list_warnings(run: Run, summary: Mapping[str, Any]) -> list[str]:
    """Return which images the accuracies leave out, and how many were learned from."""
    left_out = describe_unmatched(match_labels(summary["labels"], run.plan.label_sets.classes), "the student")
    learned = warn_of_learned_images(run.training_images, run.evaluation_images, summary["learned_images"])
    return [*filter(None, [left_out]), *learned]


def _method_runs(
    run: Run, seeds: Sequence[int], overrides: Mapping[str, Sequence[str]], gates: Gates
) -> list[MethodRun]:
    method_runs, folders = [], name_folders(list(overrides))
    teachers = TeachersOnDemand(run.config.teachers)
    for label, change in overrides.items():
        plan = make_plan(resolve_gate(with_overrides(run.config, change), gates), teachers)
        for seed in seeds:
            seeded = [*change, f"seed={seed}", "evaluation.each_epoch=false"]
            config = resolve_gate(with_overrides(run.config, seeded), gates)
            config = choose_joint_defaults(config, plan, len(run.training_images.ids))
            if config.baseline is not None and label.split()[0] not in PARTS:
                config = _with_budget(config, run.folder)
            folder = run.folder / "methods" / folders[label] / f"seed_{seed}"
            method_runs.append(MethodRun(label, StudentJob(f"{label} seed {seed}", config, plan, folder)))
    return method_runs


def _count_parameters(teacher: Teacher) -> int:
    return sum(parameter.numel() for parameter in teacher.network.parameters())


def _with_budget(config: Config, folder: Path) -> Config:
    """Return a baseline's config with as many images to train on as the amalgamated student processes."""
    section: ScratchConfig = getattr(config.baselines, config.baseline or "")
    joint = section.apply_to(config.joint, count_student_images(config, folder))
    return config.model_copy(update={"joint": joint})


def count_student_images(config: Config, folder: Path) -> int:
    """Compute how many images an amalgamated student processes in its stages, counting repeats.

    The stage ``codes`` does not count: it trains the encoders, not the student.

    Args:
        config: The config of the student, whose `scores.gate` is resolved.
        folder: The output folder, with the finished extraction.
    """
    stored = {part: _count_stored(config, folder, part) for part in (FEATURES, IMAGES)}
    layers, joint = config.layers, config.joint
    fitted = layers.epochs * (stored[FEATURES] // layers.batch_size) * layers.batch_size
    in_layers = stored[FEATURES] if layers.solver == "least_squares" else fitted
    total = sum(stored.values())
    learned = total - count_held_out(total) if chooses_student(config) else total
    in_joint = joint.images or joint.epochs * (learned // joint.batch_size) * joint.batch_size
    return int(in_layers + in_joint)


def _count_stored(config: Config, folder: Path, part: str) -> int:
    """Count the images of a part of the extraction, without those that the gate says belong to nobody."""
    if not (folder / part / DONE).exists():
        return 0
    images = int(read_json(folder / part / DONE, images=int)["images"])
    if not config.scores.gated:
        return images
    return images - count_left_out(folder / part, owners_folder(folder, config.scores.gate))


@contextmanager
def _track_children(run: Run, method_runs: Sequence[MethodRun]) -> Iterator[Run]:
    """Open a nested MLflow run for each student. If the block raises, all of them end as failed."""
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
    run: Run,
    method_runs: Sequence[MethodRun],
    counts: Mapping[str, Counts],
    seeds: list[int],
    warnings: list[str],
) -> Comparison:
    teachers = [teacher.name for teacher in run.config.teachers]
    rows, counts_by_rule, gated = [], dict[str, Counts](), dict[str, Counts]()
    accuracies = dict[str, list[Accuracy]]()
    for label in dict.fromkeys(one.label for one in method_runs):
        jobs = [one.job for one in method_runs if one.label == label]
        summaries = [stage_summaries(one.config, one.folder) for one in jobs]
        # As in count_student_images, without the stage that trains only the encoders.
        images = sum(one.images_seen for stage, one in summaries[0].items() if stage != "codes")
        parameters = sum(p.numel() for p in load_student(jobs[0].folder, trust=True).parameters())
        counted = [counts[job.name] for job in jobs]
        seconds = [sum(one.seconds for one in stages.values()) for stages in summaries]
        rows.append(make_row(label, counted, teachers, seconds, images, parameters))
        if jobs[0].config.scores.gated:
            gated.setdefault(jobs[0].config.scores.gate, counted[0])
        # All students with the same rule have the same ensemble: the counts of any of them show it.
        counts_by_rule.setdefault(jobs[0].plan.label_sets.rule_description, counted[0])
        accuracies[label] = [measure_accuracy(one, teachers) for one in counted]
        for job, accuracy in zip(jobs, accuracies[label], strict=True):
            run.children[job.name].log_metrics(final_metrics(accuracy))
    loaded = TeachersOnDemand(run.config.teachers)
    total = sum(_count_parameters(loaded[i]) for i in range(len(loaded)))
    shared = sum(part.seconds for part in extraction_summaries(run.folder))
    # Without students, the evaluation has counted only the ensemble.
    counts_by_rule = counts_by_rule or {"": counts[TEACHERS_ONLY]}
    result = Comparison(
        name=run.config.name,
        seeds=seeds,
        rows=[*make_ensemble_rows(counts_by_rule, teachers, total, gated), *rows],
        shared_seconds=shared,
        warnings=[*warnings, *warn_of_bad_students(accuracies)],
    )
    _write(run, result)
    return result


def _write(run: Run, result: Comparison) -> None:
    run.warn(*result.warnings)
    run.tracker.log_warnings(result.warnings)
    result.save(run.folder)
    folder = run.folder / "figures"
    figures = draw_or_notify(lambda: draw_comparison(result.model_dump(), folder), folder, run.warn)
    for path in (run.folder / "compare.json", run.folder / "compare.md", *figures):
        run.tracker.log_artifact(path)
