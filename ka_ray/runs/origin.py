"""What it takes to repeat a run: its command, its config, versions, and the commit of the code."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

from ka_ray.reports.origin import RunOrigin
from ka_ray.runs.output_folder import CONFIG
from ka_ray.storage.files import read_json

PACKAGE = sys.modules[__name__.partition(".")[0]]
"""ka_ray itself. Its version is not read from the metadata: a job may run other code than is installed."""

LIBRARIES = ("torch", "torchvision", "ray", "mlflow", "numpy")
"""Libraries whose versions a report names."""

GIT_TIMEOUT_S = 10
"""Seconds that git may take to name a commit."""


def describe_origin(folder: Path, name: str) -> RunOrigin:
    """Return what it takes to repeat a run.

    Args:
        folder: The output folder, which holds the config.
        name: The name of the run.
    """
    config = yaml.safe_dump(read_json(folder / CONFIG), sort_keys=False, allow_unicode=True)
    return RunOrigin(
        command=f"ka-ray run {name}.yaml --output runs/{name}_again",
        config=config,
        versions=list_versions(),
        commit=find_commit(),
    )


def list_versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of some libraries, by their names."""
    libraries = {library: version(library) for library in LIBRARIES}
    return {"ka_ray": PACKAGE.__version__, "python": platform.python_version(), **libraries}


def find_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the checkout that a file belongs to, ``-dirty`` behind it after changes.

    Args:
        file: A file; one that git does not track belongs to no checkout, even if it lies inside of one, as
            the packages of a virtual environment often do.
    """
    tracked = _ask_git(file.parent, "ls-files", "--error-unmatch", file.name)
    if tracked is None:
        return None
    return _ask_git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _ask_git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a git command in a folder; None if it fails or there is no git."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
