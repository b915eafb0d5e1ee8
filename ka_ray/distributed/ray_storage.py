"""Where Ray Train and Ray Tune keep their own records: beside a run's other files, in its output folder."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from ka_ray.storage.files import exists, get_filesystem, is_remote


def storage(folder: Path) -> dict[str, Any]:
    """Give the arguments of Ray's ``RunConfig`` that name a folder.

    A URI goes through the same fsspec file system as everything else of the run: Ray would open it by
    Arrow's own, which may look for other credentials.
    """
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    fs, path = get_filesystem(folder)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def new_experiments(folder: Path, name: str) -> Iterator[str]:
    """Name experiments of Ray Train that have no records yet: NAME-1, NAME-2 ...

    Ray Train resumes an experiment of the same name from its records: the reports and the checkpoint of the
    workers that were lost. Our workers start afresh and find what is done in the run's own files.

    Args:
        folder: Where Ray Train keeps its records.
        name: Of the run.
    """
    return (f"{name}-{n}" for n in count(1) if not exists(folder / f"{name}-{n}"))
