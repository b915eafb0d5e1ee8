"""The zip file that is sent with a job: this package, the config, and the files that the config names.

Only files that the config names by relative path are sent; absolute paths and URIs are for files on the
cluster. ``.gitignore`` is not read: a teacher's weights are usually ignored by git, and the job needs them.
"""

import importlib.machinery
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ka_ray.config.module_folders import module_folders
from ka_ray.errors import InputError
from ka_ray.storage.files import format_bytes
from ka_ray.submission.named_files import (
    factory_module,
    files_in_arguments,
    model_folders,
    network_sections,
)

MAX_UPLOAD_BYTES = 100 * 1024**2
"""The size at which Ray 2.60's job server refuses a request (``DASHBOARD_CLIENT_MAX_SIZE``). It is less than
the 512 MiB that Ray's client and documentation allow."""

PACKAGE_FOLDER = Path(__file__).parents[1]
"""The folder of ka_ray itself, which is sent so that the job runs the same code as this machine."""

EXTENSION_FILES = (
    *("config.json", "report.json", "teachers.json", "stages/codes.*", "teachers/*/teacher.safetensors"),
    "gates/*/gate.*",
)
"""The files of a finished run that ``extend`` reads. Its features are not among them: often gigabytes."""

MODEL_FILES = ("*.json", "*.safetensors", "*.bin")
"""The files of a model folder that is a teacher's ``from``; the output folder of a run has others, too."""


@dataclass(frozen=True)
class PackageEntry:
    """A group of files that is sent, e.g. a folder that the config names.

    Attributes:
        name: Name of the group in messages.
        files: Path in the job's working directory -> the file here.
    """

    name: str
    files: dict[str, Path]

    @property
    def num_bytes(self) -> int:
        """Size of the files in bytes, which is also their size in the zip file: it is not compressed."""
        return sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class JobPackage:
    """All that is sent with a job.

    Attributes:
        entries: What is sent, in the order in which it is listed to the user.
        config: Path of the config file in the job's working directory.
        missing: Top-level modules of network factories that do not exist here; the cluster must have them.
    """

    entries: list[PackageEntry]
    config: str
    missing: list[str] = field(default_factory=list)

    def check_size(self, num_bytes: int | None = None) -> None:
        """Refuse a package that the cluster's job server would refuse.

        Args:
            num_bytes: Size of the zip file in bytes. None, before it is written: the total size of its
                files is used, which is slightly less.

        Raises:
            InputError: The package is too large. The message names its largest entries.
        """
        num_bytes = sum(entry.num_bytes for entry in self.entries) if num_bytes is None else num_bytes
        if num_bytes < MAX_UPLOAD_BYTES:
            return
        largest = sorted(self.entries, key=lambda entry: -entry.num_bytes)[:3]
        named = ", ".join(f"{entry.name} ({format_bytes(entry.num_bytes)})" for entry in largest)
        raise InputError(
            f"the job's files are {format_bytes(num_bytes)} together; the cluster accepts less than "
            f"{format_bytes(MAX_UPLOAD_BYTES)}. The largest: {named}. Put them at a path that every node "
            "reaches, or at an s3:// or gs:// URI, and give that path or URI in the config"
        )

    def write(self, path: Path) -> None:
        """Write the zip file. The same content gives the same bytes, by which Ray recognizes the package.

        Raises:
            InputError: The package is too large for the cluster.
        """
        # Check twice: before writing, so that a large folder does not fill the disk, and after it, when the
        # size of the zip file itself is known.
        self.check_size()
        files = {name: source for entry in self.entries for name, source in entry.files.items()}
        # Not compressed: weights and images hardly become smaller.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as package:
            for name in sorted(files):
                info = zipfile.ZipInfo(
                    name
                )  # has a fixed date instead of the file's, which would change the bytes
                info.external_attr = 0o644 << 16
                with files[name].open("rb") as source, package.open(info, "w") as target:
                    shutil.copyfileobj(source, target)
        self.check_size(path.stat().st_size)


def collect_package(config: Path, tree: dict[str, Any], named: Sequence[str]) -> JobPackage:
    """Collect the files that a job needs.

    Args:
        config: The YAML file.
        tree: The config's content, with all overrides applied.
        named: The relative paths that the config names.

    Raises:
        InputError: A path is outside of the current folder, or has no file that can be sent.
    """
    inside = _path_inside(str(config))
    config_name = inside or f"_config/{config.name}"
    entries = [
        PackageEntry(PACKAGE_FOLDER.name, _collect_files(PACKAGE_FOLDER, PACKAGE_FOLDER.name)),
        PackageEntry(str(config), {config_name: config}),
    ]
    networks = list(network_sections(tree))
    named = [*named, *(path for network in networks for path in files_in_arguments(network))]
    models = [path for path in model_folders(tree) if not Path(path).is_absolute()]
    for path in dict.fromkeys([*named, *models]):  # each path once, in the order of the config
        only = EXTENSION_FILES if path == tree.get("extend") else MODEL_FILES if path in models else None
        entries.append(_collect_path(path, only))
    missing = []
    for module in dict.fromkeys(factory_module(network) for network in networks):
        if module is None or module == PACKAGE_FOLDER.name:
            continue
        files = _find_module(module)
        if files is None:
            missing.append(module)
        elif files:
            entries.append(PackageEntry(f"module {module}", files))
    return JobPackage(entries, config_name, missing)


def _path_inside(path: str) -> str | None:
    """Return a path relative to the current folder; None if it is outside of it."""
    relative = Path(os.path.relpath(path))
    return None if relative.parts[:1] == ("..",) else relative.as_posix()


def _collect_path(path: str, only: Sequence[str] | None) -> PackageEntry:
    """Collect a file, or the files of a folder: those that match a pattern of ``only``; None for all."""
    inside, source = _path_inside(path), Path(path)
    if inside is None:
        raise InputError(
            f"{path} lies outside of the current folder, and only files inside it are sent; start ka-ray "
            "in a folder that contains it, or give a path that every node reaches, or a URI"
        )
    files = {inside: source} if source.is_file() else _collect_files(source, inside, only)
    if not files:
        raise InputError(
            f"{path} holds none of the files that are needed of it ({', '.join(only)})"
            if only
            else f"{path} holds no file that can be sent; hidden files and __pycache__ are not"
        )
    return PackageEntry(path, files)


def _collect_files(folder: Path, name: str, only: Sequence[str] | None = None) -> dict[str, Path]:
    """Return the files below a folder by their paths in the job's working directory.

    Args:
        folder: The folder here.
        name: Its path in the job's working directory.
        only: Patterns of the files to send; None for all.
    """
    matching = [path for pattern in only or ("**/*",) for path in folder.glob(pattern)]
    return {
        Path(name, path.relative_to(folder)).as_posix(): path
        for path in matching
        if path.is_file() and not any(_is_left_out(part) for part in path.relative_to(folder).parts)
    }


def _is_left_out(name: str) -> bool:
    """Whether files and folders of this name are not sent; hidden ones may hold secrets."""
    return name == "__pycache__" or name.startswith(".")


def _find_module(name: str) -> dict[str, Path] | None:
    """Return the files of a module below the current folder by their paths in the job's working directory.

    Args:
        name: A top-level module.

    Returns:
        Its files; empty if it is an installed package, None if it does not exist here.
    """
    # The module is found, but not imported: it may need packages that only the cluster has.
    folders = [str(Path.cwd()), *module_folders(), *sys.path]
    spec = importlib.machinery.PathFinder.find_spec(name, folders)
    if spec is None:
        return None
    location = (
        spec.origin
        if spec.submodule_search_locations is None
        else next(iter(spec.submodule_search_locations))
    )
    inside = None if location is None else _path_inside(location)
    if location is None or inside is None or "site-packages" in inside:
        return {}
    # The module goes to the top of the job's working directory, the only one of its folders on sys.path.
    path = Path(location)
    return {path.name: path} if path.is_file() else _collect_files(path, name)
