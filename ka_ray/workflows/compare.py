"""Several ways to make the student, side by side: the same teachers, images, budget and seeds."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ka_ray.amalgamation.label_sets import describe
from ka_ray.config import Config, ScratchConfig, flatten, with_overrides
from ka_ray.distributed.evaluate import TEACHERS_ALONE
from ka_ray.errors import InputError
from ka_ray.features.store import DONE, FEATURES, IMAGES
from ka_ray.images.split import check_batches, check_labels, split_images
from ka_ray.metrics import Counts, accuracies
from ka_ray.reports.comparison import Comparison, ensemble_rows, make_row
from ka_ray.reports.figures import compare_methods
from ka_ray.runs.context import Run, open_run
from ka_ray.runs.extension import check_extension
from ka_ray.runs.output_folder import load_run_id, prepare_output_dir, save_run_id
from ka_ray.runs.publish import extraction_summaries, final_metrics, images_seen
from ka_ray.runs.statistics import settle_widths
from ka_ray.runs.steps import StudentJob, evaluate_students, extract, learn, teach_missing
from ka_ray.stages import stages_of
from ka_ray.stages.inputs import stage_file
from ka_ray.storage.files import make_folder, read_json
from ka_ray.student import load_student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import Teacher, build_teacher, load_teacher
from ka_ray.tracking import Tracker
from ka_ray.workflows.variants import expand_variants

PARENT = "mlflow_compare.json"


@dataclasses.dataclass(frozen=True)
class MethodRun:
    """One way to make the student, with one seed."""

    label: str
    student_job: StudentJob


def compare(
    config: Config, methods: Sequence[str], num_seeds: int = 1, vary: Sequence[str] = ()
) -> Comparison:
    """Learn a student by every method and seed, and judge all of them in one pass.

    The baselines' students see as many images as the amalgamation's in all its stages. Features and scores
    are extracted once; students that stand in the output folder are not learned again.

    Args:
        config: The run; its ``baselines`` section says how these are learned.
        methods: Of :data:`ka_ray.workflows.variants.COMPARED`.
        num_seeds: Students a method, with seeds counting from the config's.
        vary: ``dotted.key=value,value,...``: each method with each of the values.

    Returns:
        The table; also in the output folder as ``compare.json`` and ``compare.md``.

    Raises:
        InputError: Something given cannot work.
    """
    config = config.model_copy(update={"baseline": None})
    overrides, seeds = expand_variants(methods, vary), _seeds(config, num_seeds)
    teachers = [build_teacher(teacher) for teacher in config.teachers]
    planned = {way: _plan(with_overrides(config, change), teachers) for way, change in overrides.items()}
    plan = make_plan(config, teachers)
    learned_from, judged_on = split_images(config)
    check_batches(config, learned_from)
    if any(with_overrides(config, change).baseline == "scratch" for change in overrides.values()):
        check_labels(plan.spec.classes, learned_from)
    folder = prepare_output_dir(config)
    with open_run(config, folder, f"{config.name}_compare", PARENT) as run:
        run.tell(*dict.fromkeys(note for _, notes in planned.values() for note in notes))
        taught, plan = settle_widths(teach_missing(run, learned_from), plan, learned_from)
        extract(taught, plan, learned_from, _learns_jointly(config, overrides))
        variants = _variants(taught, seeds, overrides)
        with _children(taught, variants) as followed:
            learn(followed, [variant.student_job for variant in variants])
            students = {one.student_job.name: one.student_job.folder for one in variants}
            counts, _ = evaluate_students(followed, plan.label_sets, judged_on, students)
            return _publish(followed, variants, counts, seeds)


def _learns_jointly(config: Config, overrides: Mapping[str, Sequence[str]]) -> bool:
    return any(with_overrides(config, change).joint.any_steps for change in overrides.values())


def _seeds(config: Config, num_seeds: int) -> list[int]:
    if num_seeds < 1:
        raise InputError(f"--seeds: {num_seeds} must be 1 or more")
    return list(range(config.seed, config.seed + num_seeds))


def _plan(config: Config, teachers: Sequence[Teacher]) -> tuple[Plan, list[str | None]]:
    """Plan one way; give also what the user should know of it."""
    plan = make_plan(config, teachers)
    return plan, [describe(plan.label_sets), check_extension(config, plan)]


def _variants(
    run: Run[Config], seeds: Sequence[int], overrides: Mapping[str, Sequence[str]]
) -> list[MethodRun]:
    variants = []
    teachers = [load_teacher(teacher) for teacher in run.config.teachers]
    for label, change in overrides.items():
        plan = make_plan(with_overrides(run.config, change), teachers)
        for seed in seeds:
            config = with_overrides(run.config, [*change, f"seed={seed}", "evaluation.each_epoch=false"])
            if config.baseline is not None:
                config = _with_budget(config, run.folder)
            folder = run.folder / "methods" / re.sub(r"[^\w.=\-]", "_", label) / f"seed_{seed}"
            student_job = StudentJob(f"{label} seed {seed}", config, plan, folder)
            variants.append(MethodRun(label, student_job))
    return variants


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
def _children(run: Run[Config], variants: Sequence[MethodRun]) -> Iterator[Run[Config]]:
    """Open a tracker's run for every variant; all end as failed if the block raises."""
    children: dict[str, Tracker] = {}
    failed = True
    try:
        for variant in variants:
            folder, name = variant.student_job.folder, variant.student_job.name
            make_folder(folder)
            children[name] = run.tracker.child(name, load_run_id(folder))
            save_run_id(folder, children[name].run_id)
            children[name].log_params(flatten(variant.student_job.config))
        yield dataclasses.replace(run, children=children)
        failed = False
    finally:
        for child in children.values():
            child.finish(failed)


def _publish(
    run: Run[Config], variants: Sequence[MethodRun], counts: Mapping[str, Counts], seeds: list[int]
) -> Comparison:
    teachers = [teacher.name for teacher in run.config.teachers]
    rows, by_ensemble = [], dict[str, Counts]()
    for label in dict.fromkeys(variant.label for variant in variants):
        group = [variant.student_job for variant in variants if variant.label == label]
        seen = [_summaries(one) for one in group]
        of_student = [images_seen(part) for stage, part in seen[0].items() if stage != "codes"]
        parameters = sum(p.numel() for p in load_student(group[0].folder).parameters())
        counted = [counts[one.name] for one in group]
        seconds = [sum(part["seconds"] for part in parts.values()) for parts in seen]
        rows.append(make_row(label, counted, teachers, seconds, sum(of_student), parameters))
        by_ensemble.setdefault(group[0].plan.label_sets.in_words, counted[0])
        for one in group:
            run.children[one.name].log_metrics(final_metrics(accuracies(counts[one.name], teachers)))
    networks = [load_teacher(teacher).network for teacher in run.config.teachers]
    total = sum(p.numel() for network in networks for p in network.parameters())
    shared = sum(part["seconds"] for part in extraction_summaries(run.folder))
    result = Comparison(
        name=run.config.name,
        seeds=seeds,
        rows=[*ensemble_rows(by_ensemble or {"": counts[TEACHERS_ALONE]}, teachers, total), *rows],
        shared_seconds=shared,
    )
    result.save(run.folder)
    figures = compare_methods(result.model_dump(), run.folder / "figures")
    for path in (run.folder / "compare.json", run.folder / "compare.md", *figures):
        run.tracker.log_artifact(path)
    return result


def _summaries(student_job: StudentJob) -> dict[str, dict[str, Any]]:
    return {
        stage: read_json(stage_file(student_job.folder, stage)) for stage in stages_of(student_job.config)
    }
