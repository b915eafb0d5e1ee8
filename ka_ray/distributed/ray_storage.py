"""Make Ray Train and Ray Tune keep their own records in the output folder of the run."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from ka_ray.storage.files import exists, get_filesystem, is_remote


def storage_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments of Ray's ``RunConfig`` that set its storage folder.

    For a URI, Ray gets the same fsspec file system as the rest of the run uses. By default it would use
    Arrow's file system, which may look for other credentials.

    Args:
        folder: The folder of the records, local or remote.
    """
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    fs, path = get_filesystem(folder)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def new_experiment_names(folder: Path, name: str) -> Iterator[str]:
    """Yield names for experiments of Ray Train that have no records yet: NAME-1, NAME-2 ...

    Ray Train resumes an experiment of the same name from its records: the reports and the checkpoint of the
    workers that were lost. Our workers start afresh and find what is done in the run's own files.

    Args:
        folder: The folder in which Ray Train keeps its records.
        name: The name of the run.
    """
    return (f"{name}-{n}" for n in count(1) if not exists(folder / f"{name}-{n}"))
