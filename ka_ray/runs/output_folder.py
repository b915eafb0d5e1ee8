"""The output folder of a run: who it belongs to, and what stands in it already."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ka_ray.config import Config, TeachConfig, differing_keys
from ka_ray.errors import InputError
from ka_ray.storage.files import (
    exists,
    format_bytes,
    is_remote,
    make_folder,
    read_json,
    write_json,
)
from ka_ray.tracking import tracking_uri

CONFIG = "config.json"
RUN = "mlflow_run.json"


def prepare_output_dir(config: Config | TeachConfig) -> Path:
    """Make the output folder, or go on in one that the same config made.

    Raises:
        InputError: The folder belongs to a run with another config (its differing keys are listed), is not a
            run's folder at all, or cannot be written to; or nowhere is said where to track the run.
    """
    folder, new = config.output_dir, config.model_dump(mode="json")
    tracking_uri(config.tracking, folder)
    if exists(folder / CONFIG):
        differing = differing_keys(read_json(folder / CONFIG), new)
        if differing:
            lines = [f"  {key}: {old!r} there, {now!r} now" for key, (old, now) in differing.items()]
            raise InputError(
                "\n".join([f"output {folder} holds a run of another config:", *lines])
                + "\ngive another --output, or the config that made it"
            )
    elif exists(folder) and any(folder.iterdir()):
        raise InputError(f"output {folder} is not empty and no run made it; give another --output")
    try:
        make_folder(folder)
        write_json(folder / CONFIG, new)
    except Exception as error:  # every file system raises its own kinds
        raise InputError(f"output {folder} cannot be written to: {error}") from None
    return folder


def load_run_id(folder: Path, file: str = RUN) -> str | None:
    """The tracker's run id that an earlier attempt in this folder has."""
    return read_json(folder / file).get("run_id") if (folder / file).exists() else None


def save_run_id(folder: Path, run_id: str | None, file: str = RUN) -> None:
    """Keep the tracker's run id for a later attempt."""
    write_json(folder / file, {"run_id": run_id})


def check_disk(folder: Path, needed_bytes: int, begun: Sequence[Path] = ()) -> None:
    """Refuse to start what will not fit on a local disk; of a store nobody knows, nor of nodes' copies.

    Args:
        folder: Where it will lie.
        needed_bytes: Of all of it.
        begun: Folders in which some of it stands already.

    Raises:
        InputError: With both sizes, and the key that lowers what is needed.
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
