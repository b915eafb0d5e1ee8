"""Where the paths of a config lie: here, on the cluster that a job is sent to, or in a job's own folder."""

import re
from typing import Any

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")  # one slash: pathlib makes it of two
_JOB_FOLDER = re.compile(r"^.*/runtime_resources/working_dir_files/[^/]+(?:/|$)")
"""Where Ray unpacks what a job was sent with. It is named after its content, and deleted after the job."""

JOB_FOLDERS = re.compile(r"/[^\s'\"]*/runtime_resources/working_dir_files/[^/]+/")
"""The same anywhere in a text."""


class Places:
    """A validation context for a config whose absolute paths and URIs are places on a cluster.

    These need not exist here. Relative paths must, and are noted: they have to travel with the job.

    Example:
        >>> from ka_ray.config import FolderImages
        >>> there = {"source": "folder", "path": "/data/photos", "size": 32}
        >>> str(FolderImages.model_validate(there, context=Places()).path)
        '/data/photos'
    """

    def __init__(self) -> None:
        self.here: list[str] = []

    def elsewhere(self, path: str) -> bool:
        """Whether a path, as it was written, is on the cluster; if not, note it."""
        if is_absolute(path):
            return True
        if path not in self.here:
            self.here.append(path)
        return False


def lies_elsewhere(path: object, context: Any) -> bool:
    """Whether a config is checked for a cluster, on which this path lies."""
    return isinstance(context, Places) and context.elsewhere(str(path))


def is_absolute(path: str) -> bool:
    """Whether a path means the same wherever a command is started: absolute, or a URI.

    Example:
        >>> [is_absolute(path) for path in ("/data", "~/data", "s3://bucket/data", "data")]
        [True, True, True, False]
    """
    return path.startswith(("/", "~")) or _URI.match(path) is not None


def in_job_folder(path: object) -> bool:
    """Whether a path lies in the temporary working directory of a Ray job."""
    return _JOB_FOLDER.match(str(path)) is not None


def without_job_folder(value: Any) -> Any:
    """Make paths in a job's temporary working directory relative to it, anywhere in a dumped config.

    The same job sent again is unpacked somewhere else, or here, where its paths are relative.

    Example:
        >>> without_job_folder({"path": "/tmp/ray/s/runtime_resources/working_dir_files/_ray_pkg_1f/data/a"})
        {'path': 'data/a'}
    """
    if isinstance(value, str):
        return _JOB_FOLDER.sub("", value) if in_job_folder(value) else value
    if isinstance(value, dict):
        return {key: without_job_folder(one) for key, one in value.items()}
    return [without_job_folder(one) for one in value] if isinstance(value, list) else value
