"""Checks of `ka-ray doctor` that look only at this machine: Python, libraries, memory, files and disks."""

import os
import platform
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from ka_ray.runs.findings import Finding
from ka_ray.storage.files import format_bytes, is_remote

MIN_PYTHON = (3, 11)

MIN_OPEN_FILES, GOOD_OPEN_FILES = 1024, 4096
"""Open files that Ray needs on one machine, and those that a cluster with many workers needs."""

STORE_SHARE = 0.3
"""Share of the memory that Ray reserves in /dev/shm for its object store."""

MIN_DISK_BYTES, FULL_DISK_SHARE = 2**30, 0.95
"""With less than the first a run cannot work; if more than the second is used, Ray stores no objects."""

MAX_SOCKET_FOLDER = 40
"""Longest name of the temporary folder, in bytes: Ray adds about 65 for its sockets, and Linux allows 107."""

SHOWN = ("ray", "torch", "torchvision", "mlflow")
"""Libraries whose versions are shown."""


def check_python(found: tuple[int, ...] = tuple(sys.version_info[:3])) -> Finding:
    """Check the version of Python.

    Args:
        found: The version.
    """
    text = f"{'.'.join(map(str, found))} in {sys.prefix}"
    if found < MIN_PYTHON:
        return Finding("Python", "error", text, "install Python 3.11 or newer, and ka_ray there")
    return Finding("Python", "ok", text)


def check_libraries(find_version: Callable[[str], str] = version, wanted: list[str] | None = None) -> Finding:
    """Check that the libraries which ka_ray needs are there, in versions that fit.

    Args:
        find_version: Returns the version of an installed package.
        wanted: Requirements such as ``torch>=2.11``; None: those of the installed ka_ray.
    """
    try:
        lines = (requires("ka_ray") or []) if wanted is None else wanted
    except PackageNotFoundError:  # run from a folder, without being installed
        lines = []
    wrong = []
    for need in map(Requirement, lines):
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            there = find_version(need.name)
        except PackageNotFoundError:
            there = "missing"
        if there == "missing" or not need.specifier.contains(there, prereleases=True):
            wrong.append((f"{need.name} {there} instead of {need.specifier or 'any'}", str(need)))
    if wrong:
        packages = " ".join(f"'{line}'" for _, line in wrong)
        found = ", ".join(text for text, _ in wrong)
        return Finding("libraries", "error", found, f"{sys.executable} -m pip install {packages}")
    shown = ", ".join(f"{name} {find_version(name)}" for name in SHOWN)
    return Finding("libraries", "ok", f"{shown}, on {platform.machine()}")


def check_shared_memory(
    free: int | None = None, memory: int | None = None, folder: Path = Path("/dev/shm")
) -> Finding:
    """Check that Ray's object store fits into shared memory; in containers it often does not.

    Args:
        free: Free bytes of shared memory; None: those of the folder.
        memory: Bytes of memory of the machine; None: ask the operating system.
        folder: Where shared memory is mounted.
    """
    if not folder.is_dir():
        return Finding("shared memory", "ok", f"there is no {folder}; Ray uses files")
    free = shutil.disk_usage(folder).free if free is None else free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if memory is None else memory
    wanted = int(STORE_SHARE * memory)
    found = f"{format_bytes(free)} are free, Ray takes up to {format_bytes(wanted)}"
    if free >= wanted:
        return Finding("shared memory", "ok", found)
    size = f"docker run --shm-size={max(1, wanted // 2**30)}g"
    advice = f"give the container more ({size}), or remove old files in {folder}"
    return Finding("shared memory", "warning", f"{found}, so it will use slower files", advice)


def check_open_files(limits: tuple[int, int] | None = None) -> Finding:
    """Check how many files a process may open; Ray raises the soft limit to the hard one.

    Args:
        limits: The soft and the hard limit; None: those of this process. -1 stands for no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE) if limits is None else limits
    text = "no limit" if hard in (-1, resource.RLIM_INFINITY) else f"up to {hard:,} (now {soft:,})"
    most = float("inf") if hard in (-1, resource.RLIM_INFINITY) else hard
    advice = f"raise the hard limit to {16 * GOOD_OPEN_FILES}, e.g. in /etc/security/limits.conf"
    if most < MIN_OPEN_FILES:
        return Finding("open files", "error", text, advice)
    if most < GOOD_OPEN_FILES:
        return Finding("open files", "warning", f"{text}, few for many workers", advice)
    return Finding("open files", "ok", text)


def check_disk(folder: Path, name: str, advice: str) -> Finding:
    """Check that a folder can be written to and that its disk has room.

    Args:
        folder: The folder; it need not exist yet.
        name: What it is for.
        advice: How to use another folder.
    """
    if is_remote(folder):
        return Finding(name, "ok", f"{folder} is not on this machine, and was not tried")
    there = next((one for one in (folder, *folder.parents) if one.exists()), Path("/"))
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return Finding(name, "error", f"{there} is no folder that can be written to", advice)
    usage = shutil.disk_usage(there)
    text = f"{format_bytes(usage.free)} of {format_bytes(usage.total)} are free at {there}"
    if usage.free < MIN_DISK_BYTES:
        return Finding(name, "error", text, f"free some space, or {advice}")
    if usage.free < (1 - FULL_DISK_SHARE) * usage.total:
        text += f"; above {FULL_DISK_SHARE:.0%} Ray stores no objects"
        return Finding(name, "warning", text, f"free some space, or {advice}")
    return Finding(name, "ok", text)


def check_temporary_folder() -> Finding:
    """Check the folder of Ray's sockets and logs, whose name must be short."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    advice = "set RAY_TMPDIR to another folder"
    if len(os.fsencode(folder)) > MAX_SOCKET_FOLDER:
        return Finding("temporary folder", "error", f"{folder} has too long a name for sockets", advice)
    return check_disk(folder, "temporary folder", advice)
