"""Describe the start of a student for the user, before a run."""

from collections.abc import Sequence
from typing import Any

from ka_ray.config import Config
from ka_ray.errors import InputError
from ka_ray.stages.start_list import SAME_ORIGIN, find_distance, list_sources
from ka_ray.student import StudentSpec
from ka_ray.teachers import Teacher
from ka_ray.teachers.skeleton import without_values


def describe_start(config: Config, spec: StudentSpec, teachers: Sequence[Teacher]) -> str | None:
    """Check before a run that its start can be built, and describe it for the user.

    Args:
        config: Config of the run; all of its teachers have checkpoints, or are trained in the run.
        spec: The student.
        teachers: The teachers, asked for one after the other; random weights stand for those that are yet to
            be trained.

    Raises:
        InputError: No start can be built.
    """
    if config.student.start == "random":
        return None
    notes, skipped = dict[str, str](), dict[str, str]()
    # What a start needs depends on shapes; only the distance of the weights depends on their values.
    skeletons = [without_values(teachers[i]) for i in range(len(teachers))]
    compared = config.student.start in ("auto", "average") and config.student.widths is None
    distance = find_distance(spec, teachers, skeletons) if compared else None
    same_origin = distance is not None and distance < SAME_ORIGIN
    for name, source in list_sources(config, spec, skeletons, same_origin).items():
        try:
            notes[name] = f"start {name}: {source.check()}"
        except InputError as error:
            skipped[name] = str(error)
    if not notes:
        raise InputError(
            f"student.start: no start applies to the student's network {spec.network!r} "
            f"({'; '.join(skipped.values())}); set it to random, and name `taps` to learn layer by layer"
        )
    lines = list(notes.values())
    if "average" in notes and distance is not None and all(t.checkpoint is not None for t in config.teachers):
        lines.append(_describe_distance(distance))
    if config.student.start == "auto" and config.student.widths is not None:
        lines.append("of the starts, only exact applies to other widths than the teachers'")
    others = [name for name, own in _preprocessing_of(config).items() if own != dict(spec.preprocessing)]
    if others:
        lines.append(f"{', '.join(others)}: another preprocessing than the student's, for the same weights")
    return "student: " + "; ".join([*lines, *_describe_unused(config)])


def _describe_unused(config: Config) -> list[str]:
    unused = [key for key in ("taps", "codes", "layers") if key in config.model_fields_set]
    if not unused or config.learns_layers or config.baseline is not None:
        return []
    return [f"{', '.join(unused)} are not used: layers.behind_start is false"]


def _preprocessing_of(config: Config) -> dict[str, dict[str, Any]]:
    """Return teacher -> its preprocessing with everything set, as a student's spec has it."""
    size, resize = config.images.size, config.images.resize
    return {t.name: t.preprocessing.resolve(size, resize).model_dump(mode="json") for t in config.teachers}


def _describe_distance(distance: float) -> str:
    note = f"the teachers' weights are {distance:.2f} of their norm apart"
    if distance > SAME_ORIGIN:
        note += ", as if they did not come from one network: their mean as they are is probably useless"
    return note
