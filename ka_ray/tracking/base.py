"""The interface of experiment trackers, and the choice of the server or database that tracks a run."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ka_ray.config import TrackingConfig
from ka_ray.errors import InputError
from ka_ray.storage.files import is_remote
from ka_ray.storage.uris import refuse_credentials
from ka_ray.tracking.records import StudentVersion, TrackedImages
from ka_ray.tracking.uri import check_answer, check_form, check_sqlite_file

if TYPE_CHECKING:  # at run time, this import would load torch, which takes seconds
    from ka_ray.student import Student


def tracking_uri(config: TrackingConfig, output: Path) -> str | None:
    """Return the URI at which a run is tracked: ``tracking.uri``, otherwise the variable MLFLOW_TRACKING_URI.

    Args:
        config: The config's ``tracking`` section.
        output: The run's output folder.

    Returns:
        The URI of a tracking server or database. None if neither is set (the run is then tracked in a SQLite
        file in its output folder), or if ``tracking.backend`` is ``none`` (it is not tracked).

    Raises:
        InputError: Neither URI is set, and the output folder is remote, where SQLite cannot write; or the URI
            holds credentials, or is none that MLflow knows.
    """
    if config.backend == "none":
        return None
    uri, key = _configured_uri(config)
    if uri:
        refuse_credentials(uri, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        check_form(uri, key)
        return uri
    if is_remote(output):
        raise InputError(
            "tracking.uri: with null, MLflow writes a SQLite file to the output folder, but cannot do so in "
            f"{output}; set tracking.uri=http://your-server:5000 (or MLFLOW_TRACKING_URI), or "
            "tracking.backend=none"
        )
    return None


def check_tracker(config: TrackingConfig, output: Path) -> None:
    """Check that the tracker can be opened, without loading it; takes at most about 10 seconds.

    Args:
        config: The config's ``tracking`` section.
        output: The run's output folder.

    Raises:
        InputError: As for :func:`tracking_uri`; or no server answers, or the run's database is damaged.
    """
    uri, key = tracking_uri(config, output), _configured_uri(config)[1]
    if uri is not None:
        check_answer(uri, key)
    elif config.backend != "none":
        check_sqlite_file(output / "mlflow.db")


def _configured_uri(config: TrackingConfig) -> tuple[str | None, str]:
    """Return the URI that the user has set, if any, and the key or variable that holds it."""
    if config.uri:
        return config.uri, "tracking.uri"
    return os.environ.get("MLFLOW_TRACKING_URI"), "MLFLOW_TRACKING_URI"


class Tracker(Protocol):
    """Logs the parameters, metrics, artifacts and model of one run.

    Only the driver uses it, not the workers. Its methods may be called from any thread.

    Attributes:
        tracking_uri: URI of the server or database that stores the run; None if nothing is logged.
        run_id: The tracker's id of the run; a resumed run logs to the same id. None if nothing is logged.
        link: Address at which a browser shows the run; None without a tracking server.
    """

    tracking_uri: str | None
    run_id: str | None
    link: str | None

    def child(self, name: str, run_id: str | None) -> "Tracker":
        """Start or continue a run that is nested in this run; the caller must call its ``finish``.

        Args:
            name: The nested run's name.
            run_id: The tracker's id of the nested run to continue; None for a new one.

        Returns:
            The nested run's tracker.
        """

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters. Those that a resumed run has already logged keep their old values.

        Args:
            params: Values by dotted key, e.g. ``joint.epochs``.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the values of metrics at one step.

        Args:
            metrics: Values by name; a name is ``stage/quantity``, e.g. ``joint/loss``.
            step: The step, counted in epochs from 1; 0 for metrics that are measured only once.
        """

    def log_warnings(self, warnings: Sequence[str]) -> None:
        """Mark the run with what went wrong without an error, so that it is seen in the list of runs.

        Args:
            warnings: Sentences for the user; empty: the run is not marked.
        """

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, by which lists of runs can be filtered.

        Args:
            tags: Values by name.
        """

    def describe(self, text: str) -> None:
        """Set the text that stands at the top of the run's page.

        Args:
            text: Markdown.
        """

    def log_images(self, images: TrackedImages) -> None:
        """Log which images the run read.

        Args:
            images: The images.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, or of a folder with everything in it.

        Args:
            path: The local or remote file or folder.
            folder: Folder among the run's artifacts in which to store it; None for their top folder.
        """

    def log_student(self, student: "Student") -> None:
        """Log the student as a model that can be loaded and served."""

    def register_student(self, version: StudentVersion, notify: Callable[[str], None]) -> None:
        """Register the logged student as a new version of a model; the best one is its champion.

        Args:
            version: The version.
            notify: Called with what came of it, in a sentence for the user.
        """

    def finish(self, failed: bool) -> None:
        """End the run.

        Args:
            failed: Whether the run is marked as failed; otherwise it is marked as finished.
        """
