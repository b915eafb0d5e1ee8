"""Where a run's parameters, metrics, files and model are kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ka_ray.config import TrackingConfig
from ka_ray.tracking.base import Tracker, tracking_uri
from ka_ray.tracking.null import NullTracker

__all__ = ["TRACKERS", "NullTracker", "Tracker", "open_tracker", "tracking_uri"]


def _mlflow(config: TrackingConfig, name: str, output: Path, run_id: str | None) -> Tracker:
    from ka_ray.tracking.mlflow import MlflowTracker

    return MlflowTracker(config, name, output, run_id)


def _none(config: TrackingConfig, name: str, output: Path, run_id: str | None) -> Tracker:
    return NullTracker()


TRACKERS: dict[str, Callable[[TrackingConfig, str, Path, str | None], Tracker]] = {
    "mlflow": _mlflow,
    "none": _none,
}


@contextmanager
def open_tracker(config: TrackingConfig, name: str, output: Path, run_id: str | None) -> Iterator[Tracker]:
    """Track one run; it ends as failed if the block raises, else as finished.

    Args:
        config: Which tracker, and where.
        name: Of the run.
        output: The run's output folder, where an unnamed tracking store is made.
        run_id: Of an earlier attempt to go on with; None for a new run.
    """
    tracker = TRACKERS[config.backend](config, name, output, run_id)
    try:
        yield tracker
    except BaseException:  # also Ctrl-C: a run must not look as if it still ran
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)
