"""The output folder of a run: which config it belongs to, the tracker's run id, and room on its disk."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ka_ray.config import Config, TeachConfig, differing_keys
from ka_ray.errors import InputError
from ka_ray.runs.output_lock import LOCK, lock_folder
from ka_ray.storage.files import (
    exists,
    format_bytes,
    is_remote,
    make_folder,
    read_json,
    write_json,
)
from ka_ray.storage.uris import to_path
from ka_ray.student import Student, load_student
from ka_ray.student.graph_student import GraphStudent
from ka_ray.tracking import tracking_uri

_logger = logging.getLogger(__name__)

CONFIG = "config.json"
"""The file with the config that an output folder belongs to."""

MERGE_CONFIG = "merge.yaml"
"""The config that `ka-ray merge` has found out, with which `ka-ray run` repeats it."""

DIGESTS = "teachers.json"
"""The file with the digests of the checkpoints of all teachers, and of the descriptive network."""

RUN = "mlflow_run.json"
"""The file with the id of the tracker's run, with which later attempts continue."""


REPORT = "report.json"
"""The file that a run writes last."""


def load_finished_student(folder: str | Path, *, trust: bool = False) -> Student | GraphStudent:
    """Load a student to use it; warn if its run has not finished. A copy of the student alone is no run.

    Args:
        folder: The output folder.
        trust: See :func:`ka_ray.student.load_student`.

    Raises:
        InputError: As there.
    """
    student, path = load_student(folder, trust=trust), to_path(folder)
    if exists(path / CONFIG) and not exists(path / REPORT):
        _logger.warning("the run in %s has not finished: its student has not been evaluated", path)
    return student


@contextmanager
def claim_output_dir(config: Config | TeachConfig) -> Iterator[Path]:
    """Prepare the output folder, and keep other commands out of it while the block runs.

    Args:
        config: The config of the command.

    Yields:
        The output folder.

    Raises:
        InputError: As :func:`prepare_output_dir`, or another command is working in the folder.
    """
    _check_output_dir(config)
    with lock_folder(config.output_dir):
        # Checked again: another command may have used the folder in the meantime.
        yield prepare_output_dir(config)


def prepare_output_dir(config: Config | TeachConfig) -> Path:
    """Make the output folder, or continue in one that the same config made.

    Returns:
        The output folder.

    Raises:
        InputError: The folder belongs to a run with another config (the message lists the keys that differ),
            was not made by a run, or cannot be written to; or the tracker has no place to keep the run.
    """
    folder, new = config.output_dir, config.model_dump(mode="json")
    _check_output_dir(config)
    try:
        make_folder(folder)
        write_json(folder / CONFIG, new)
    except Exception as error:  # every file system raises its own kinds
        raise InputError(f"output {folder} cannot be written to: {error}") from None
    return folder


def _check_output_dir(config: Config | TeachConfig) -> None:
    """Refuse an output folder that is not for this config, before anything is written to it."""
    folder, new = config.output_dir, config.model_dump(mode="json")
    tracking_uri(config.tracking, folder)  # raises where runs cannot be tracked
    if exists(folder / CONFIG):
        differing = differing_keys(read_output_config(folder, type(config)), new)
        if differing:
            lines = [f"  {key}: {old!r} there, {now!r} now" for key, (old, now) in differing.items()]
            raise InputError(
                "\n".join([f"output {folder} holds a run of another config:", *lines])
                + "\ngive another --output, or the config that made it"
            )
    elif exists(folder) and not folder.is_dir():
        raise InputError(f"output {folder} is a file; give a folder as --output")
    elif exists(folder) and any(LOCK not in path.name for path in folder.iterdir()):
        raise InputError(f"output {folder} is not empty and no run made it; give another --output")


def read_output_config(folder: Path, kind: type[Config] | type[TeachConfig]) -> dict[str, Any]:
    """Read the config that an output folder belongs to.

    Args:
        folder: The output folder.
        kind: The kind of its config.

    Returns:
        The config as ``model_dump(mode="json")`` writes it. Keys that an earlier version of ka_ray did not
        have get their defaults; a config that this version would refuse is returned as it was saved.

    Raises:
        InputError: The file is missing or damaged.
    """
    saved: dict[str, Any] = read_json(folder / CONFIG)
    try:
        return kind.model_validate(saved).model_dump(mode="json")
    except ValueError:
        return saved


def load_run_id(folder: Path, file: str = RUN) -> str | None:
    """Return the id of the tracker's run of an earlier attempt; None if there was none.

    Args:
        folder: The output folder.
        file: The name of the file that holds the id.
    """
    return read_json(folder / file).get("run_id") if (folder / file).exists() else None


def save_run_id(folder: Path, run_id: str | None, file: str = RUN) -> None:
    """Save the id of the tracker's run for later attempts.

    Args:
        folder: The output folder.
        run_id: The id; None if the tracker has none.
        file: The name of the file that holds the id.
    """
    write_json(folder / file, {"run_id": run_id})


def check_disk(folder: Path, needed_bytes: int, begun: Sequence[Path] = ()) -> None:
    """Check that a local disk has room for features; nothing is checked if the folder is in an object store.

    Args:
        folder: The folder on the disk.
        needed_bytes: The size of all features.
        begun: Folders in which an earlier attempt has already stored some of the features, which therefore
            need no more room.

    Raises:
        InputError: The disk has too little room.
    """
    if is_remote(folder):
        return
    needed_bytes -= sum(path.stat().st_size for part in begun for path in part.glob("*.arrow"))
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise InputError(
            f"the features take {format_bytes(needed_bytes)}, {folder} has {format_bytes(free)} free; "
            "lower extract.images, drop taps, or give another --output"
        )
