"""What a job is sent with: this package, the config, and all that it names by relative path, in one zip."""

import importlib.machinery
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ka_ray.errors import InputError
from ka_ray.storage.files import format_bytes

MAX_UPLOAD_BYTES = 100 * 1024**2
"""What the job server of Ray 2.60 takes in one request (``DASHBOARD_CLIENT_MAX_SIZE``): less than the 512 MiB
that its client allows and its documentation names."""

PACKAGE = Path(__file__).parents[1]  # the folder of ka_ray itself
"""What runs here runs there."""

EXTENDED = ("config.json", "stages/codes.*", "teachers/*/teacher.safetensors")
"""What a run that is extended needs to have; its features, often gigabytes, are not among it."""

ENTRY_BYTES = 30 + 46
END_BYTES = 22
"""A zip file's own: of every file, beside its name twice, and at its end."""


@dataclass(frozen=True)
class Entry:
    """Something that travels: its name for people, and its files by their paths in the job's folder."""

    name: str
    files: dict[str, Path]

    @property
    def num_bytes(self) -> int:
        """Its size in the zip file, which is not compressed: weights and images hardly would be."""
        names = sum(ENTRY_BYTES + 2 * len(name.encode()) for name in self.files)
        return names + sum(path.stat().st_size for path in self.files.values())


@dataclass(frozen=True)
class JobPackage:
    """All that a job is sent with.

    Attributes:
        entries: In the order in which they are named to the user.
        config: The config's path in the job's folder.
        missing: Modules of factories that were not found here; the cluster must have them.
    """

    entries: list[Entry]
    config: str
    missing: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Size of the zip file."""
        return END_BYTES + sum(entry.num_bytes for entry in self.entries)

    def check(self) -> None:
        """Refuse what the cluster would refuse.

        Raises:
            InputError: It is too large; the largest entries are named.
        """
        if self.num_bytes < MAX_UPLOAD_BYTES:
            return
        largest = sorted(self.entries, key=lambda entry: -entry.num_bytes)[:3]
        named = ", ".join(f"{entry.name} ({format_bytes(entry.num_bytes)})" for entry in largest)
        raise InputError(
            f"the job would be sent with {format_bytes(self.num_bytes)}, the cluster takes less than "
            f"{format_bytes(MAX_UPLOAD_BYTES)}; the largest: {named}. Put them at a path that every node "
            "reaches, or at an s3:// or gs:// URI, and name them by that"
        )

    def write(self, path: Path) -> None:
        """Write the zip file: the same content gives the same bytes, which Ray knows a package by."""
        files = {name: source for entry in self.entries for name, source in entry.files.items()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as package:
            for name in sorted(files):
                info = zipfile.ZipInfo(name)  # without the file's date
                info.external_attr = 0o644 << 16
                with files[name].open("rb") as source, package.open(info, "w") as target:
                    shutil.copyfileobj(source, target)


def pack(config: Path, tree: dict[str, Any], named: Sequence[str]) -> JobPackage:
    """Gather what a job needs, whatever ``.gitignore`` says of it.

    Args:
        config: The YAML file.
        tree: What it holds, with all overrides applied.
        named: The relative paths in it.

    Raises:
        InputError: A path leads out of the current folder, or there is nothing at it.
    """
    inside = _inside(str(config))
    config_name = inside or f"_config/{config.name}"
    entries = [
        Entry(PACKAGE.name, _files(PACKAGE, PACKAGE.name)),
        Entry(str(config), {config_name: config}),
    ]
    networks = list(_networks(tree))
    named = [*named, *(text for network in networks for text in _named_files(network.get("arguments")))]
    for path in dict.fromkeys(named):
        entries.append(_travelling(path, only=EXTENDED if path == tree.get("extend") else None))
    missing = []
    for module in dict.fromkeys(_module(network) for network in networks):
        if module is None or module == PACKAGE.name:
            continue
        found = _find_module(module)
        if found is None:
            missing.append(module)
        elif found:
            entries.append(Entry(f"module {module}", found))
    return JobPackage(entries, config_name, missing)


def _inside(path: str) -> str | None:
    """Where a path lies below the current folder; None if it does not."""
    relative = Path(os.path.relpath(path))
    return None if relative.parts[:1] == ("..",) else relative.as_posix()


def _travelling(path: str, only: Sequence[str] | None) -> Entry:
    inside, source = _inside(path), Path(path)
    if inside is None:
        raise InputError(
            f"{path} lies outside of the current folder, which is all that a job has; start ka-ray where "
            "it is inside, or put it at a path that every node reaches, or at a URI, and give that"
        )
    files = {inside: source} if source.is_file() else _files(source, inside, only)
    if not files:
        raise InputError(f"{path} holds {'nothing that is needed of a finished run' if only else 'no file'}")
    return Entry(path, files)


def _files(folder: Path, name: str, only: Sequence[str] | None = None) -> dict[str, Path]:
    """All files below a folder (or those that match), by their paths in the job's folder."""
    found = [path for pattern in only or ("**/*",) for path in folder.glob(pattern)]
    return {
        Path(name, path.relative_to(folder)).as_posix(): path
        for path in found
        if path.is_file() and not any(_stays(part) for part in path.relative_to(folder).parts)
    }


def _stays(part: str) -> bool:
    """Whether a file or folder of this name stays here: also what is hidden, where secrets often lie."""
    return part == "__pycache__" or part.startswith(".")


def _networks(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sections of a config that describe a network."""
    for section in [*(tree.get("teachers") or []), tree.get("teacher"), tree.get("student")]:
        if isinstance(section, dict):
            yield section


def _named_files(arguments: Any) -> Iterator[str]:
    """What a network's arguments name here: files alone, as any name could happen to be a folder's."""
    for value in (arguments or {}).values():
        if isinstance(value, str) and not Path(value).is_absolute() and Path(value).is_file():
            yield value


def _module(network: dict[str, Any]) -> str | None:
    """The top-level module of a factory ``package.module:factory``."""
    name = network.get("network")
    return name.partition(":")[0].partition(".")[0] if isinstance(name, str) and ":" in name else None


def _find_module(name: str) -> dict[str, Path] | None:
    """The files of a module below the current folder; none if it is installed, None if it is nowhere."""
    spec = importlib.machinery.PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
    if spec is None:
        return None
    place = (
        spec.origin
        if spec.submodule_search_locations is None
        else next(iter(spec.submodule_search_locations))
    )
    inside = None if place is None else _inside(place)
    if place is None or inside is None or "site-packages" in inside:
        return {}
    return {Path(place).name: Path(place)} if Path(place).is_file() else _files(Path(place), name)
