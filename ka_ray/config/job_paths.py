"""Where the paths of a config are: on this machine, on the cluster, or in the folder of a Ray job."""

import re
from typing import Any

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:/")  # a single slash, because pathlib merges two
_JOB_FOLDER = re.compile(r"^.*/runtime_resources/working_dir_files/[^/]+(?:/|$)")
"""The folder in which Ray unpacks a job's files: named after a hash of them, and deleted later."""

JOB_FOLDERS = re.compile(r"/[^\s'\"]*/runtime_resources/working_dir_files/[^/]+/")
"""The same folders anywhere in a text, such as an error message."""


class ClusterContext:
    """A validation context for a config that is sent to a cluster.

    Its absolute paths and URIs are on the cluster and need not exist on this machine. Its relative paths must
    exist here; :attr:`local_paths` collects them, because they have to be sent with the job.

    Example:
        >>> from ka_ray.config import FolderImages
        >>> there = {"source": "folder", "path": "/data/photos", "size": 32}
        >>> str(FolderImages.model_validate(there, context=ClusterContext()).path)
        '/data/photos'
    """

    def __init__(self) -> None:
        self.local_paths: list[str] = []

    def is_on_cluster(self, path: str) -> bool:
        """Return whether a path of the config is on the cluster; if not, add it to ``local_paths``."""
        if is_absolute(path):
            return True
        if path not in self.local_paths:
            self.local_paths.append(path)
        return False


def is_on_cluster(path: object, context: Any) -> bool:
    """Return whether a config is checked for a cluster and a path is on that cluster.

    Args:
        path: The path as written in the config.
        context: The validation context: a :class:`ClusterContext` if the config is sent to a cluster.
    """
    return isinstance(context, ClusterContext) and context.is_on_cluster(str(path))


def is_absolute(path: str) -> bool:
    """Return whether a path means the same in every folder: it is absolute, or a URI.

    Example:
        >>> [is_absolute(path) for path in ("/data", "~/data", "s3://bucket/data", "data")]
        [True, True, True, False]
    """
    return path.startswith(("/", "~")) or _URI.match(path) is not None


def in_job_folder(path: object) -> bool:
    """Return whether a path lies in the temporary working directory of a Ray job."""
    return _JOB_FOLDER.match(str(path)) is not None


def without_job_folder(value: Any) -> Any:
    """Make paths in a job's temporary working directory relative to it, anywhere in a dumped config.

    The same job is unpacked in another folder when it is sent again, but it is still the same config.

    Example:
        >>> without_job_folder({"path": "/tmp/ray/s/runtime_resources/working_dir_files/_ray_pkg_1f/data/a"})
        {'path': 'data/a'}
    """
    if isinstance(value, str):
        return _JOB_FOLDER.sub("", value) if in_job_folder(value) else value
    if isinstance(value, dict):
        return {key: without_job_folder(item) for key, item in value.items()}
    return [without_job_folder(item) for item in value] if isinstance(value, list) else value
