"""A tracker that outlives its server: what cannot be stored now is stored later, or named at the end."""

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ka_ray.tracking.base import Tracker
from ka_ray.tracking.null import NullTracker
from ka_ray.tracking.records import StudentVersion, TrackedImages

if TYPE_CHECKING:  # at run time, this import would load torch, which takes seconds
    from ka_ray.student import Student

RETRY_S = 60.0
"""Least number of seconds until what could not be stored is tried again."""

RETRY_FACTOR = 10
"""The pause is at least this many times as long as the failed try: a server that is gone can take minutes to
fail, because MLflow repeats each request."""

CONNECT_S = 5.0
"""Seconds in which a tracking server must accept a connection."""

Call = tuple[str, str, Callable[[], None]]
"""The kind of what is stored, what it is, for messages, and the call that stores it."""

MAX_FAILED = 2
"""Number of failed calls of a kind after which no more of that kind are tried at a time: a store that takes
metrics may refuse all files, and each try may take a minute."""


class TolerantTracker(Tracker):
    """Passes everything on to a tracker; if that fails, the run goes on without it.

    A tracker's server or its disk can fail in the middle of hours of training. Its calls then wait here, in
    their order, and are tried again with the later ones and at the end. A kind of calls that is refused, such
    as files, does not hold up the others. What is missing at the end is said.

    Args:
        tracker: The tracker.
        notify: Called with messages for the user.
        clock: Returns seconds, of which only differences matter.

    Attributes:
        tracking_uri: As of the tracker.
        run_id: As of the tracker.
        link: As of the tracker.
    """

    def __init__(
        self, tracker: Tracker, notify: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tracking_uri, self.run_id, self.link = tracker.tracking_uri, tracker.run_id, tracker.link
        self._tracker, self._notify, self._clock = tracker, notify, clock
        self._lock = threading.RLock()
        self._waiting: deque[Call] = deque()
        self._error: Exception | None = None
        self._next_try = clock()

    def child(self, name: str, run_id: str | None) -> Tracker:
        """Start or continue a nested run; if that fails, return a tracker that keeps nothing.

        Args:
            name: The nested run's name.
            run_id: The tracker's id of the nested run to continue; None for a new one.
        """
        try:
            self._check_server()
            child = self._tracker.child(name, run_id)
        except Exception as error:  # every kind of store raises its own types
            self._notify(f"tracking: the nested run {name!r} cannot be opened and is not tracked: {error}")
            return NullTracker()
        return TolerantTracker(child, self._notify, self._clock)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters.

        Args:
            params: Values by dotted key.
        """
        copied = dict(params)
        self._store("params", "parameters", lambda: self._tracker.log_params(copied))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log the values of metrics at one step.

        Args:
            metrics: Values by name.
            step: The step.
        """
        copied = dict(metrics)
        stage = next(iter(copied), "").partition("/")[0]
        self._store("metrics", f"metrics of {stage}", lambda: self._tracker.log_metrics(copied, step))

    def log_warnings(self, warnings: Sequence[str]) -> None:
        """Mark the run with warnings.

        Args:
            warnings: Sentences for the user.
        """
        copied = list(warnings)
        self._store("warnings", "warnings", lambda: self._tracker.log_warnings(copied))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run.

        Args:
            tags: Values by name.
        """
        copied = dict(tags)
        self._store("tags", "tags", lambda: self._tracker.log_tags(copied))

    def describe(self, text: str) -> None:
        """Set the text of the run's page.

        Args:
            text: Markdown.
        """
        self._store("tags", "the description", lambda: self._tracker.describe(text))

    def log_images(self, images: TrackedImages) -> None:
        """Log which images the run read.

        Args:
            images: The images.
        """
        self._store("images", f"the {images.purpose} images", lambda: self._tracker.log_images(images))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file or folder.

        Args:
            path: The local or remote file or folder.
            folder: Folder among the run's artifacts; None for their top folder.
        """
        self._store("artifact", path.name, lambda: self._tracker.log_artifact(path, folder))

    def log_student(self, student: "Student") -> None:
        """Log the student as a model."""
        self._store("student", "the student as a model", lambda: self._tracker.log_student(student))

    def register_student(self, version: StudentVersion, notify: Callable[[str], None]) -> None:
        """Register the logged student as a new version of a model.

        Args:
            version: The version.
            notify: Called with what came of it.
        """
        what = "the student as a version of a model"
        self._store("version", what, lambda: self._tracker.register_student(version, notify))

    def finish(self, failed: bool) -> None:
        """End the run, and say what the tracker has not got.

        Args:
            failed: Whether the run is marked as failed; otherwise it is marked as finished.
        """
        with self._lock:
            self._waiting.append(("end", "its end", lambda: self._tracker.finish(failed)))
            self._send()
            missing = Counter(what for _, what, _ in self._waiting)
        if missing:
            times = (f"{what} ({count} times)" if count > 1 else what for what, count in missing.items())
            self._notify(
                f"tracking: {self.tracking_uri} lacks {', '.join(times)} of this run. The output folder has "
                f"the student and the report. The last error was: {self._error}"
            )

    def _store(self, kind: str, what: str, call: Callable[[], None]) -> None:
        with self._lock:
            self._waiting.append((kind, what, call))
            if self._clock() >= self._next_try:
                self._send()

    def _send(self) -> None:
        """Make the waiting calls in their order, except those of kinds that fail, while a server answers."""
        calls, self._waiting, began = self._waiting, deque(), self._clock()
        failures, gone = Counter[str](), False
        for kind, what, call in calls:
            error = None
            if not gone and failures[kind] < MAX_FAILED:
                gone, error = self._try(call)
                if error is None:
                    continue
                failures[kind] += 1
            if error is not None and self._error is None:
                self._notify(f"tracking: {what} could not be stored; the run goes on: {error}")
            self._error = error or self._error
            self._waiting.append((kind, what, call))
        if self._waiting:
            now = self._clock()
            self._next_try = now + max(RETRY_S, RETRY_FACTOR * (now - began))

    def _try(self, call: Callable[[], None]) -> tuple[bool, Exception | None]:
        """Make a call; return whether the server is gone, and the error if the call could not be made."""
        try:
            self._check_server()
        except OSError as error:
            return True, error
        try:
            call()
        except Exception as error:  # every kind of store raises its own types
            return False, error
        return False, None

    def _check_server(self) -> None:
        """Raise an OSError at once if a tracking server is gone: MLflow would find out after minutes."""
        import requests  # what MLflow's client uses; here, because importing it takes a while

        uri = self.tracking_uri or ""
        server = urlsplit(uri)
        direct = server.scheme in ("http", "https") and not requests.utils.get_environ_proxies(uri)
        if direct and server.hostname is not None:
            port = server.port or (443 if server.scheme == "https" else 80)
            socket.create_connection((server.hostname, port), timeout=CONNECT_S).close()
