"""What the run tells of itself, whoever keeps it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ka_ray.config import TrackingConfig
from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote
from ka_ray.storage.uris import refuse_credentials

if TYPE_CHECKING:  # the protocol alone must not cost an import of torch
    from ka_ray.student import Student


def tracking_uri(config: TrackingConfig, output: Path) -> str | None:
    """Say where a run is tracked: at the configured URI, else at that of the environment.

    Returns:
        None where neither is given: the run is tracked in a SQLite file of its folder, or not at all.

    Raises:
        InputError: Neither is given, and the folder is remote, where no SQLite file can be; or the
            environment's URI holds a password.
    """
    if config.backend == "none":
        return None
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        refuse_credentials(given, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return given
    if is_remote(output):
        raise InputError(
            f"tracking.uri: null keeps a SQLite file in the output folder, which cannot be in {output}; "
            "set tracking.uri=http://your-server:5000 (or MLFLOW_TRACKING_URI), or tracking.backend=none"
        )
    return None


class Tracker(Protocol):
    """Keeps the parameters, metrics, files and model of one run.

    Only the process that started the run talks to it; its methods may be called from any thread there.

    Attributes:
        tracking_uri: Where it keeps them; None if nowhere.
        run_id: The run there; given to a later attempt, that one goes on with the same run.
        link: Where a browser shows the run; None where no server does.
    """

    tracking_uri: str | None
    run_id: str | None
    link: str | None

    def child(self, name: str, run_id: str | None) -> "Tracker":
        """Open a run below this one, or go on with it; who opens it finishes it."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep parameters under flat dotted keys; those that a resumed run has already stay as they are."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep values of metrics named ``stage/quantity``, at one step."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a directory with all that is in it, in a folder of the run."""

    def log_student(self, student: "Student") -> None:
        """Keep the student as a model that can be loaded and served."""

    def finish(self, failed: bool) -> None:
        """End the run, as failed or as finished."""
