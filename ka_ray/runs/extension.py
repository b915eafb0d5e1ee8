"""Add teachers to a finished run: check before anything starts what of it can be reused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ka_ray.config import Config, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.runs.output_folder import CONFIG, read_output_config
from ka_ray.stages.inputs import stage_summary_path
from ka_ray.stages.summaries import CodeShape, CodesSummary
from ka_ray.stages.teacher import teacher_checkpoint_path
from ka_ray.storage.files import read_json
from ka_ray.storage.uris import to_path
from ka_ray.student.plan import Plan
from ka_ray.teachers.checkpoint import checkpoint_digest

TEACHERS = "teachers"
"""The folder of the teachers that a run has trained, in its output folder."""

UNCHANGED_KEYS = ("network", "arguments", "classes", "preprocessing")
"""Keys of a teacher that must not change if its auto-encoders are reused."""


def check_extension(config: Config, plan: Plan) -> str | None:
    """Check that a run can extend the run that ``extend`` in its config names.

    Args:
        config: The config of the new run.
        plan: The networks of the new run.

    Returns:
        A sentence for the user on what is reused; None if the config extends no run.

    Raises:
        InputError: The extended run has no codes yet, its teachers are not the first ones of the new run,
            their checkpoints, taps or widths have changed, or it was made with another method.
    """
    if config.extend is None:
        return None
    old, codes = _read(config.extend)
    names = [teacher["name"] for teacher in old["teachers"]]
    _check_teachers(config, old["teachers"], codes.teachers)
    if config.codes.method != "incremental":
        return (
            f"extending {config.extend}: with codes.method {config.codes.method} all auto-encoders are "
            "trained again (incremental would train only those of the new teachers)"
        )
    if old["codes"]["method"] != "incremental":
        raise InputError(
            f"extend: {config.extend} was made with codes.method {old['codes']['method']}, so it has no "
            "auto-encoders that could be extended; run it again with codes.method=incremental"
        )
    _check_shapes(config.extend, codes, _shapes(plan, len(names)))
    reused = len(names) - 1  # the first auto-encoder joins two teachers, each further one adds a teacher
    return (
        f"extending {config.extend}: {reused} auto-encoder(s) per tap are reused unchanged, "
        f"{len(config.teachers) - 1 - reused} trained"
    )


def check_extended_teachers(config: Config) -> None:
    """Check that the teachers of the extended run are the first ones of this run, unchanged.

    Args:
        config: The config of the new run.

    Raises:
        InputError: The config extends a run, whose teachers are others or have changed.
    """
    if config.extend is not None:
        old, codes = _read(config.extend)
        _check_teachers(config, old["teachers"], codes.teachers)


def _read(folder: Path) -> tuple[dict[str, Any], CodesSummary]:
    for path in (folder / CONFIG, stage_summary_path(folder, "codes")):
        if not path.exists():
            raise InputError(
                f"extend: {folder} holds no {path.relative_to(folder)}; give the folder of a finished run"
            )
    try:
        config = read_output_config(folder, Config)
        _check_described(config, folder)
        return config, CodesSummary.load(stage_summary_path(folder, "codes"))
    except InputError as error:
        raise InputError(f"extend: {error}") from None


def _check_described(config: dict[str, Any], folder: Path) -> None:
    """Check that a config that was read has what is compared of it; this version may refuse all of it."""
    try:
        found = [teacher[key] for teacher in config["teachers"] for key in ("name", *UNCHANGED_KEYS)]
        found.append(config["codes"]["method"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / CONFIG} is damaged: it lacks {error}") from None


def _check_teachers(config: Config, old: list[dict[str, Any]], digests: dict[str, str]) -> None:
    names, here = [teacher["name"] for teacher in old], [teacher.name for teacher in config.teachers]
    if here[: len(names)] != names or len(here) == len(names):
        raise InputError(
            f"extend: {config.extend} has the teachers {names}; this run must list them first, in this "
            f"order, followed by at least one more; it lists {here}"
        )
    for known, teacher in zip(old, config.teachers, strict=False):
        new = teacher.model_dump(mode="json")
        changed = [key for key in UNCHANGED_KEYS if known[key] != new[key]]
        if changed:
            raise InputError(
                f"teachers.{teacher.name}: {', '.join(changed)} differ from those in {config.extend}"
            )
        checkpoint = teacher.checkpoint or find_earlier_checkpoint(config, teacher)
        if checkpoint is None or checkpoint_digest(checkpoint) != digests.get(teacher.name):
            raise InputError(
                f"teachers.{teacher.name}.checkpoint: {checkpoint} is not the file that {config.extend} used"
            )


def _check_shapes(extended: Path, codes: CodesSummary, shapes: dict[str, CodeShape]) -> None:
    for tap, shape in shapes.items():
        known = codes.shapes.get(tap)
        if known != shape:
            raise InputError(
                f"extend: tap {tap} has {_describe(known)} in {extended}, {_describe(shape)} here; "
                "taps, widths and student must be the same"
            )


def _shapes(plan: Plan, num_teachers: int) -> dict[str, CodeShape]:
    """Return what the auto-encoders of the first teachers depend on, tap by tap."""
    per_teacher = {"channels", "paths"}  # keys with one entry per teacher; the others apply to all teachers
    return {
        tap: CodeShape.model_validate(
            {key: value[:num_teachers] if key in per_teacher else value for key, value in shape.items()}
        )
        for tap, shape in plan.code_shapes().items()
    }


def _describe(shape: CodeShape | None) -> str:
    return "no codes" if shape is None else str(shape.model_dump())


def find_earlier_checkpoint(config: Config, teacher: TeacherConfig) -> Path | None:
    """Find the checkpoint of a teacher that was trained by the extended run, or by a run that it extended.

    Args:
        config: The config of the new run.
        teacher: The teacher to look for.

    Returns:
        The checkpoint; None if no such run trained this teacher.
    """
    paths = (
        teacher_checkpoint_path(folder / TEACHERS, teacher.name) for folder in list_extended_folders(config)
    )
    return next((path for path in paths if path.exists()), None)


def list_extended_folders(config: Config) -> Iterator[Path]:
    """Yield the output folders of the run that a run extends, of the run that that one extends, and so on.

    Args:
        config: The config of the new run.
    """
    folder = config.extend
    while folder is not None:
        yield folder
        extended = read_json(folder / CONFIG).get("extend")
        folder = None if extended is None else to_path(extended)
