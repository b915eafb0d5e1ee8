"""Set up a run, for all commands that merge teachers: check the config, connect, train missing teachers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ka_ray.amalgamation.label_sets import describe_overlap
from ka_ray.config import Config, Decoding, with_overrides
from ka_ray.distributed.cluster import Cluster
from ka_ray.distributed.resource_plan import ResourcePlan
from ka_ray.images.split import ImageSet, check_batches, check_labels, split_images
from ka_ray.runs.context import Run, open_context
from ka_ray.runs.descriptive import prepare_descriptive
from ka_ray.runs.extended_gate import check_finished_gate
from ka_ray.runs.extension import check_extension
from ka_ray.runs.first_checks import check_first
from ka_ray.runs.gate_samples import list_hints
from ka_ray.runs.joint_defaults import choose_joint_defaults, describe_joint_defaults
from ka_ray.runs.label_checks import check_evaluation_labels
from ka_ray.runs.learned_images import warn_of_learned_images
from ka_ray.runs.listings import check_listings, list_sources
from ka_ray.runs.output_folder import RUN, claim_output_dir
from ka_ray.runs.teacher_checks import try_teachers
from ka_ray.runs.teachers import teach_missing
from ka_ray.runs.timeline import Timeline
from ka_ray.runs.tracked import track_inputs
from ka_ray.stages.describe_start import describe_start
from ka_ray.stages.joint import chooses_student
from ka_ray.student.plan import Plan, make_plan
from ka_ray.teachers import Teacher, build_teacher
from ka_ray.teachers.check import describe_checkpoint
from ka_ray.teachers.networks import STUDENT_NETWORK
from ka_ray.teachers.on_demand import TeachersOnDemand
from ka_ray.teachers.sources.describe import describe_teacher
from ka_ray.training.batches import count_held_out
from ka_ray.verbosity import verbosity


@dataclass(frozen=True)
class RunPlan:
    """What is known of a run before anything has started.

    Attributes:
        config: The config of the run; every teacher is described key by key.
        students: The configs of the students that the training stages will learn.
        plan: The networks that will be built, and where features will be read.
        training_images: The images that students learn from.
        evaluation_images: The images that students are evaluated on.
        notes: What the user should know, shown when the run starts.
        warnings: What may be wrong, shown even with ``--quiet``.
        timeline: Has planning as its first step.
    """

    config: Config
    students: tuple[Config, ...]
    plan: Plan
    training_images: ImageSet
    evaluation_images: ImageSet
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    timeline: Timeline = field(default_factory=Timeline)


def plan_run(config: Config, students: Sequence[Sequence[str]] = ()) -> RunPlan:
    """Plan a run and check all that can be checked before it starts; nothing is written.

    Args:
        config: The config of the run.
        students: For each student that the training stages will learn, the overrides of the config; empty if
            the command does not run these stages.

    Returns:
        The plan.

    Raises:
        InputError: Something in the config cannot work; the message names the key.
    """
    timeline = Timeline()
    with timeline.step("planning"):
        check_first(config)
        config, descriptions = describe_teachers(config)
        planned = plan_described(config, descriptions, students)
    return replace(planned, timeline=timeline)


def plan_described(
    config: Config, descriptions: Sequence[str], students: Sequence[Sequence[str]] = ()
) -> RunPlan:
    """Plan a run like :func:`plan_run`, once its teachers are described; servers are not asked.

    Args:
        config: The config of the run, with every teacher described key by key.
        descriptions: What was found out about the teachers, for the user.
        students: As in :func:`plan_run`.

    Raises:
        InputError: Something in the config cannot work; the message names the key.
    """
    config, found = prepare_descriptive(config, [_apply(config, change) for change in students])
    notes: list[str | None] = [*descriptions, *found]
    teachers = TeachersOnDemand(config.teachers, build_teacher)
    notes += [describe_checkpoint(teachers[i]) for i in range(len(teachers))]  # the first message is theirs
    plan = make_plan(config, teachers)
    student_configs = tuple(_apply(config, change) for change in students)
    for student in student_configs:
        own_plan = plan if student is config else make_plan(student, teachers)
        notes += _describe_student(student, own_plan, teachers)
    notes.append(check_finished_gate(config, student_configs, plan))
    training_images, evaluation_images = (
        images.with_views(plan.views.columns) for images in split_images(config)
    )
    given, config = config, choose_joint_defaults(config, plan, len(training_images.ids))
    notes.append(describe_joint_defaults(given, config) if students else None)
    notes += _describe_images(training_images, evaluation_images, plan.label_sets.classes)
    tried, warnings = try_teachers(config, teachers, plan, training_images)
    notes += tried
    if students:
        holds_out = config.student.start != "random" or chooses_student(config)
        check_batches(config, training_images, count_held_out(len(training_images.ids)) if holds_out else 0)
    # Only students of this baseline learn from labels.
    if any(student.baseline == "scratch" for student in student_configs):
        check_labels(plan.spec.classes, training_images, "baseline scratch")
    unique_notes = tuple(dict.fromkeys(filter(None, notes)))  # several students may cause the same note
    return RunPlan(config, student_configs, plan, training_images, evaluation_images, unique_notes, warnings)


def _apply(config: Config, change: Sequence[str]) -> Config:
    return with_overrides(config, change) if change else config


def _describe_student(student: Config, plan: Plan, teachers: Sequence[Teacher]) -> list[str | None]:
    """Check a student, and return what the user should know of it."""
    notes = [describe_overlap(plan.label_sets), check_extension(student, plan)]
    if student.scores.hints and "hints" not in student.gates:
        notes.append(f"scores.hints are not used with scores.gate: {student.scores.gate}")
    return [*notes, describe_start(student, plan.spec, teachers)]


def _describe_images(training: ImageSet, evaluation: ImageSet, classes: Sequence[str]) -> list[str]:
    """Check the labels of evaluation images, and return what is left out of the sources and why."""
    notes = [images.source.note for images in (training, evaluation)]
    notes.append(check_evaluation_labels(evaluation, classes, "the student"))
    return [*notes, *warn_of_learned_images(training, evaluation)]


def describe_teachers(config: Config) -> tuple[Config, list[str]]:
    """Find out what the config leaves open of its teachers.

    Args:
        config: The config of a run.

    Returns:
        The config with every teacher described key by key; and what was found, for the user.

    Raises:
        InputError: A source cannot be read, or does not say enough.
    """
    described = []
    for teacher in config.teachers:
        if teacher.from_ is not None and not verbosity().quiet:  # recognising a network can take seconds
            print(f"teacher {teacher.name}: finding out what {teacher.from_} is", file=sys.stderr, flush=True)
        described.append(describe_teacher(teacher))
    teachers = tuple(teacher for teacher, _ in described)
    notes = [note for _, note in described if note]
    for teacher in teachers:
        own = teacher.arguments.get("decoding") if teacher.network == STUDENT_NETWORK else None
        if own is not None and Decoding.model_validate(own) != config.images.decoding:
            notes.append(
                f"teacher {teacher.name}: learned from images that were decoded by other rules, {own}; set "
                "images.decoding to them, unless this run's images need others"
            )
    return config.model_copy(update={"teachers": teachers}), notes


@contextmanager
def _claim(planned: RunPlan) -> Iterator[Path]:
    """Prepare the output folder, and check that the images are those that an earlier attempt in it had."""
    uses_hints = any("hints" in student.gates for student in planned.students)
    hints = list_hints(planned.config) if uses_hints else None
    with claim_output_dir(planned.config) as folder:
        check_listings(folder, list_sources(planned.training_images, planned.evaluation_images, hints))
        yield folder


@contextmanager
def start_run(
    planned: RunPlan,
    suffix: str = "",
    id_file: str = RUN,
    check_resources: Callable[[ResourcePlan, Cluster], None] = lambda resources, cluster: None,
) -> Iterator[Run]:
    """Prepare the output folder, connect to Ray and MLflow, and train the teachers that have no checkpoint.

    Args:
        planned: The plan of the run.
        suffix: Added to the config's name to form the name of the MLflow run, such as ``_compare``.
        id_file: Name of the file in the output folder that keeps the id of the MLflow run.
        check_resources: Called before anything is logged; raises InputError if the cluster is too small for
            what this command needs in addition.

    Raises:
        InputError: The output folder belongs to another run, another command is working in it, the list of
            images has changed since it began, or the cluster is too small.
    """
    config = planned.config
    with (
        _claim(planned) as folder,
        open_context(
            config, folder, f"{config.name}{suffix}", id_file, check_resources, planned.timeline
        ) as context,
    ):
        context.notify(*planned.notes)
        context.warn(*planned.warnings)
        run = Run(
            **vars(context),
            plan=planned.plan,
            training_images=planned.training_images,
            evaluation_images=planned.evaluation_images,
        )
        run = teach_missing(run)
        track_inputs(run)
        yield run
