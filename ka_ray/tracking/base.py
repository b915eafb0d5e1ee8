"""The interface that every tracker has, and the choice of the place where a run is tracked."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ka_ray.config import TrackingConfig
from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote
from ka_ray.storage.uris import refuse_credentials

if TYPE_CHECKING:  # importing it would load torch, which takes seconds
    from ka_ray.student import Student


def tracking_uri(config: TrackingConfig, output: Path) -> str | None:
    """Return where a run is tracked: at the configured URI, otherwise at the one in MLFLOW_TRACKING_URI.

    Args:
        config: The config's ``tracking`` section.
        output: The run's output folder.

    Returns:
        The URI of a tracking server or database. None if there is none: the run is tracked in a SQLite file
        in its output folder, or not at all.

    Raises:
        InputError: There is no URI and the output folder is remote, where no SQLite file can be; or the
            environment's URI holds a password.
    """
    if config.backend == "none":
        return None
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        refuse_credentials(uri, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri
    if is_remote(output):
        raise InputError(
            f"tracking.uri: null keeps a SQLite file in the output folder, which cannot be in {output}; "
            "set tracking.uri=http://your-server:5000 (or MLFLOW_TRACKING_URI), or tracking.backend=none"
        )
    return None


class Tracker(Protocol):
    """Keeps the parameters, metrics, files and model of one run.

    Only the process that started the run uses it, not the workers; its methods may be called from any thread.

    Attributes:
        tracking_uri: URI of the server or database that keeps the run; None if nothing is kept.
        run_id: The tracker's id of the run, with which a later attempt continues it; None if nothing is kept.
        link: Address at which a browser shows the run; None if no server does.
    """

    tracking_uri: str | None
    run_id: str | None
    link: str | None

    def child(self, name: str, run_id: str | None) -> "Tracker":
        """Open a child run of this run; the caller has to call ``finish`` of the child.

        Args:
            name: The child run's name.
            run_id: The tracker's id of an earlier attempt at the child, to continue it; None for a new run.

        Returns:
            The child run's tracker.
        """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep parameters; those that a continued run already has keep their old values.

        Args:
            params: Values by dotted key, e.g. ``joint.epochs``.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Keep the values of metrics at one step.

        Args:
            metrics: Values by name, which is ``stage/quantity``, e.g. ``joint/loss``.
            step: The step, counted in epochs from 1; 0 for metrics that are measured only once.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a folder with everything in it.

        Args:
            path: The local or remote file or folder.
            folder: The folder of the run's artifacts to put it in; None for their top folder.
        """

    def log_student(self, student: "Student") -> None:
        """Keep the student as a model that can be loaded and served."""

    def finish(self, failed: bool) -> None:
        """End the run, as failed or as finished."""
