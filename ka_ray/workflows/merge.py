"""`ka-ray merge`: merge teachers without a config; `ka-ray init`: write the config that this would run."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.reports.report import Report
from ka_ray.runs.first_checks import check_first
from ka_ray.runs.output_folder import MERGE_CONFIG
from ka_ray.runs.setup import RunPlan, describe_teachers, plan_described, start_run
from ka_ray.runs.stored_parts import count_missing_bytes
from ka_ray.runs.timeline import Timeline
from ka_ray.storage.files import exists, format_bytes, is_remote, write_text
from ka_ray.storage.uris import to_path
from ka_ray.terminal.streams import error_stream, print_progress
from ka_ray.workflows.amalgamate import learn_student
from ka_ray.workflows.config_text import render_config
from ka_ray.workflows.merge_choices import choose
from ka_ray.workflows.merge_config import Choice, MergeRequest, build_config, to_overrides

START = "student: "
"""How the notes of a plan begin that are about the student's start."""


@dataclass(frozen=True)
class PlannedMerge:
    """A run that merges teachers, of which everything is found out and nothing has started.

    Attributes:
        config: The config as it is written: what is left open of the teachers stays open.
        tree: The mapping that the config was made from, with the paths as they were given.
        choices: Dotted key -> what was found out about the images.
        run: The plan of the run.
    """

    config: Config
    tree: Mapping[str, Any]
    choices: Mapping[str, Choice]
    run: RunPlan


def merge(
    teachers: Sequence[str | Path | Mapping[str, Any]],
    images: str | Path,
    output: str | Path | None = None,
    *,
    hints: Mapping[str, str | Path] | None = None,
    evaluate: str | Path | None = None,
    **overrides: Any,
) -> Report:
    """Merge trained classifiers into one student, as `ka-ray merge` does; no config is needed.

    Called again with the same arguments, the run resumes. Its config is ``merge.yaml`` in the output folder.

    Args:
        teachers: Files, folders or names of published models, or ``NAME=SOURCE``; or mappings with the keys
            of a teacher in a config.
        images: Folder of the images that the student learns from; also a list, Parquet, tar, or save_to_disk.
        output: The output folder; None: ``runs/`` and the names of the teachers.
        hints: Teacher, or ``nobody`` -> folder of images that show its classes.
        evaluate: Folder of the images that the student is evaluated on; None: a tenth of `images`.
        **overrides: Keys of the config, and their values; a mapping adds to a section.

    Returns:
        The report of the run.

    Raises:
        InputError: Something cannot work; raised before the first image is read where possible.

    Example:
        ::

            report = ka_ray.merge(["hf/dogs", "birds.ckpt"], images="photos", joint={"epochs": 1})
    """
    request = MergeRequest(teachers, images, output, hints or {}, evaluate, to_overrides(overrides))
    return merge_by_request(request)[0]


def merge_by_request(request: MergeRequest) -> tuple[Report, Path]:
    """Merge teachers; see :func:`merge`.

    Args:
        request: What to merge.

    Returns:
        The report of the run, and its output folder.
    """
    check_first(build_config(request)[0])  # before teachers are found out, which takes longer
    planned = plan_merge(request)
    print_progress("\n".join(describe_plan(planned)))
    # The paths are absolute, because the file lies elsewhere than the current folder.
    text = write_config_text(planned, planned.config.model_dump(mode="json", exclude_unset=True))
    with start_run(planned.run) as run:
        write_text(run.folder / MERGE_CONFIG, text)
        return learn_student(run), run.folder


def init(request: MergeRequest, file: str | Path | None = None, force: bool = False) -> Path:
    """Write the config of a run that merges teachers, with comments on what was found out; nothing is run.

    Args:
        request: What to merge.
        file: The YAML file; None: the name of the run, in the current folder.
        force: Whether to overwrite an existing file.

    Returns:
        The file.

    Raises:
        InputError: The file exists, or something cannot work in the run.
    """
    config, _ = build_config(request)
    path = to_path(file or f"{config.name}.yaml")
    if exists(path) and not force:
        raise InputError(f"{path} exists; --force overwrites it, --config FILE gives another name")
    planned = plan_merge(request)
    write_text(path, write_config_text(planned, planned.tree))
    for warning in planned.run.warnings:  # not only in the file
        print(f"warning: {warning}", file=error_stream())
    return path


def plan_merge(request: MergeRequest) -> PlannedMerge:
    """Find out what the teachers and the images are, and plan the run; nothing is written.

    Args:
        request: What to merge.

    Raises:
        InputError: Something cannot work; the message names it.
    """
    timeline = Timeline()
    with timeline.step("planning"):
        draft, _ = build_config(request)
        described, descriptions = describe_teachers(draft)
        choices = choose(described)
        config, tree = build_config(request, choices)
        described = config.model_copy(update={"teachers": described.teachers})
        run = plan_described(described, descriptions, [()])
    return PlannedMerge(config, tree, choices, replace(run, timeline=timeline))


def describe_plan(planned: PlannedMerge) -> Iterator[str]:
    """Yield what a run will do, in lines for the user.

    Args:
        planned: The planned run.
    """
    run, folder = planned.run, planned.config.output_dir
    yield f"merging {len(run.config.teachers)} teachers into {folder}"
    for teacher in run.config.teachers:
        source = f", {teacher.from_}" if teacher.from_ else ""
        yield f"  teacher {teacher.name}: {len(teacher.classes)} classes{source}"
    yield f"  images: {_describe_images(planned)}"
    labels = {"images.labelled": "", "evaluation.images.labelled": "to evaluate: "}
    yield from (f"  {text}{_reason(planned, key)}" for key, text in labels.items() if _reason(planned, key))
    for key in ("images.size", "joint.batch_size"):
        if reason := _reason(planned, key):
            yield f"  {key}: {planned.choices[key].value}, {reason}"
    yield f"  gate: {_describe_gate(run.config)}"
    stored = count_missing_bytes(run.config, run.plan, run.training_images, run.students)
    free = "" if is_remote(folder) else f"; {format_bytes(_free_bytes(folder))} are free"
    yield f"  disk: about {format_bytes(stored)} of images and scores will be written{free}"


def write_config_text(planned: PlannedMerge, tree: Mapping[str, Any]) -> str:
    """Return the config as YAML, with comments on what was found out.

    Args:
        planned: The planned run.
        tree: The config as a mapping.
    """
    comments: dict[str, list[str]] = {
        "": [
            "Merge these teachers with: ka-ray run THIS_FILE. Keys that are not here have their defaults;",
            "jobs/configs/folder.yaml explains all of them. Comments say what was found out.",
        ],
        "images": [_describe_images(planned)],
        "scores.hints": [f"gate: {_describe_gate(planned.config)}"],
    }
    for key in planned.choices:
        if reason := _reason(planned, key):
            comments[key] = [reason]
    rest = list(planned.run.notes)
    for number, teacher in enumerate(planned.run.config.teachers):
        about = (f"teacher {teacher.name}: ", f"teacher {teacher.name}, ")
        own = [note for note in rest if note.startswith(about)]
        comments[f"teachers.{number}"] = own
        rest = [note for note in rest if note not in own]
    starts = [note.removeprefix(START) for note in rest if note.startswith(START)]
    others = [note for note in rest if not note.startswith(START)]
    comments["end"] = [f"student.start: {planned.config.student.start}: {note}" for note in starts] + others
    comments["end"] += [f"warning: {warning}" for warning in planned.run.warnings]
    return render_config(tree, comments)


def _reason(planned: PlannedMerge, key: str) -> str:
    """Return why a key has its value; empty if the user has set another one, or nothing is to be said."""
    choice, value = planned.choices.get(key), planned.config
    for part in key.split("."):
        value = getattr(value, part, None)  # type: ignore[assignment]
    return choice.reason if choice is not None and choice.value == value else ""


def _describe_images(planned: PlannedMerge) -> str:
    training, evaluation = planned.run.training_images, planned.run.evaluation_images
    where = getattr(planned.config.images, "path", planned.config.images.source)
    images = f"{len(training.ids):,} to learn from"
    if evaluation.source is training.source:
        return f"{where}: {images}, {len(evaluation.ids):,} held out to evaluate"
    return f"{where}: {images}; {len(evaluation.ids):,} others to evaluate"


def _describe_gate(config: Config) -> str:
    if not config.gates:
        return "none: the teacher with the higher scores decides whose image it is; --hints could help"
    hints = f", with hints of {', '.join(config.scores.hints)}" if config.scores.hints else ""
    return f"{config.scores.gate}{hints}"


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
