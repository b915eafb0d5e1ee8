"""Experiment tracking: where a run's parameters, metrics, files and model are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ka_ray.config import TrackingConfig
from ka_ray.tracking.base import Tracker, check_tracker, tracking_uri
from ka_ray.tracking.null import NullTracker
from ka_ray.tracking.tolerant import TolerantTracker

__all__ = ["TRACKERS", "NullTracker", "Tracker", "check_tracker", "open_tracker", "tracking_uri"]


def _open_mlflow(config: TrackingConfig, name: str, output: Path, run_id: str | None) -> Tracker:
    from ka_ray.tracking.mlflow import MlflowTracker  # here, because importing MLflow takes seconds

    return MlflowTracker(config, name, output, run_id)


def _open_none(config: TrackingConfig, name: str, output: Path, run_id: str | None) -> Tracker:
    return NullTracker()


TRACKERS: dict[str, Callable[[TrackingConfig, str, Path, str | None], Tracker]] = {
    "mlflow": _open_mlflow,
    "none": _open_none,
}
"""``tracking.backend`` -> the function that opens its tracker, with the arguments of :func:`open_tracker`."""


@contextmanager
def open_tracker(
    config: TrackingConfig,
    name: str,
    output: Path,
    run_id: str | None,
    notify: Callable[[str], None] | None = None,
) -> Iterator[Tracker]:
    """Track one run; the tracked run ends as failed if the block raises, otherwise as finished.

    Args:
        config: The config's ``tracking`` section: which tracker, and where it keeps things.
        name: The run's name.
        output: The run's output folder. If no tracking server is configured, MLflow's database is made there.
        run_id: The tracker's id of an earlier attempt at the same run, to continue it; None for a new run.
        notify: Called with messages for the user if something cannot be stored; the run then goes on. None:
            errors of the tracker are raised. Errors of opening it always are.

    Yields:
        The tracker.

    Raises:
        InputError: The tracker cannot be opened; the message says why.
    """
    check_tracker(config, output)
    tracker = TRACKERS[config.backend](config, name, output, run_id)
    if notify is not None and tracker.tracking_uri is not None:
        tracker = TolerantTracker(tracker, notify)
    try:
        yield tracker
    except BaseException:  # Ctrl-C, too: otherwise the run would be shown as running for ever
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)
