"""Where Ray Train and Ray Tune keep their own records: beside a run's other files, in its output folder."""

from pathlib import Path
from typing import Any

from pyarrow.fs import FSSpecHandler, PyFileSystem

from ka_ray.storage.files import get_filesystem, is_remote


def storage(folder: Path) -> dict[str, Any]:
    """Give the arguments of Ray's ``RunConfig`` that name a folder.

    A URI goes through the same fsspec file system as everything else of the run: Ray would open it by
    Arrow's own, which may look for other credentials.
    """
    if not is_remote(folder):
        return {"storage_path": str(folder)}
    fs, path = get_filesystem(folder)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}
