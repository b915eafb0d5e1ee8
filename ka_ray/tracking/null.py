"""The tracker that keeps nothing, so that callers need not ask whether there is a tracker."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ka_ray.tracking.base import Tracker
from ka_ray.tracking.records import StudentVersion, TrackedImages

if TYPE_CHECKING:  # importing it would load torch, which takes seconds
    from ka_ray.student import Student


class NullTracker(Tracker):
    """A tracker that keeps nothing.

    Attributes:
        tracking_uri: Always None.
        run_id: Always None.
        link: Always None.
    """

    tracking_uri: str | None = None
    run_id: str | None = None
    link: str | None = None

    def child(self, name: str, run_id: str | None) -> "NullTracker":
        """Return another tracker that keeps nothing.

        Args:
            name: Ignored.
            run_id: Ignored.
        """
        return NullTracker()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Do nothing.

        Args:
            metrics: Ignored.
            step: Ignored.
        """

    def log_warnings(self, warnings: Sequence[str]) -> None:
        """Do nothing.

        Args:
            warnings: Ignored.
        """

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing.

        Args:
            tags: Ignored.
        """

    def describe(self, text: str) -> None:
        """Do nothing.

        Args:
            text: Ignored.
        """

    def log_images(self, images: TrackedImages) -> None:
        """Do nothing.

        Args:
            images: Ignored.
        """

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Do nothing.

        Args:
            path: Ignored.
            folder: Ignored.
        """

    def log_student(self, student: "Student") -> None:
        """Do nothing."""

    def register_student(self, version: StudentVersion, notify: Callable[[str], None]) -> None:
        """Do nothing.

        Args:
            version: Ignored.
            notify: Ignored.
        """

    def finish(self, failed: bool) -> None:
        """Do nothing."""
