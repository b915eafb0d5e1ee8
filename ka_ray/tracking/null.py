"""The tracker of who wants none, so that no caller has to ask whether there is one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ka_ray.student import Student


class NullTracker:
    """Keeps nothing."""

    tracking_uri: str | None = None
    run_id: str | None = None
    link: str | None = None

    def child(self, name: str, run_id: str | None) -> "NullTracker":
        """Give another that keeps nothing."""
        return NullTracker()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing."""

    def log_student(self, student: "Student") -> None:
        """Do nothing."""

    def finish(self, failed: bool) -> None:
        """Do nothing."""
