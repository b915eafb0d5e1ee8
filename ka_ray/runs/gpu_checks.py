"""Checks of `ka-ray doctor` of the GPUs: does NVIDIA's driver suit the build of torch?"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ka_ray.runs.findings import Finding
from ka_ray.storage.files import format_bytes
from ka_ray.terminal.nvidia import Gpu, find_driver

NAME = "GPU"


@dataclass(frozen=True)
class TorchBuild:
    """What the installed torch can do.

    Attributes:
        version: Its version.
        cuda: The version of CUDA that it is built for, such as ``12.8``; None: built for CPUs.
        usable: Number of GPUs that it can use now.
        reason: What it says if it can use none.
        architectures: Architectures that it has code for, such as ``sm_90``.
        capabilities: Compute capability of each GPU that it can use.
    """

    version: str
    cuda: str | None
    usable: int = 0
    reason: str = ""
    architectures: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()


class DriverInfo(Protocol):
    """What is asked of NVIDIA's driver: :class:`ka_ray.terminal.nvidia.Driver`."""

    @property
    def version(self) -> str:
        """The driver's version."""

    @property
    def cuda(self) -> tuple[int, int]:
        """The newest version of CUDA that it supports."""

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs of this machine."""


def read_torch_build() -> TorchBuild:
    """Ask torch what it is built for and what it can use.

    Raises:
        Exception: torch cannot be imported, for example because a library of CUDA is missing.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reason = str(caught[-1].message).split(" (Triggered")[0] if caught and not usable else ""
    architectures = tuple(torch.cuda.get_arch_list()) if usable else ()
    capabilities = tuple(torch.cuda.get_device_capability(i) for i in range(usable))
    return TorchBuild(torch.__version__, torch.version.cuda, usable, reason, architectures, capabilities)


def check_gpus(
    read_build: Callable[[], TorchBuild] = read_torch_build,
    find: Callable[[], DriverInfo | None] = find_driver,
) -> Finding:
    """Check that torch can use the GPUs of this machine, if it has any.

    Args:
        read_build: Asks torch.
        find: Returns NVIDIA's driver; None if there is none.
    """
    try:
        build = read_build()
    except Exception as error:  # whatever the import of a broken installation raises
        return Finding(NAME, "error", f"torch cannot be imported: {error}", "install torch again")
    driver = find()
    try:
        gpus = () if driver is None else driver.gpus()
    except OSError as error:
        return Finding(NAME, "error", str(error), "restart the machine, or install the driver again")
    if driver is None or not gpus:
        kind = "CPUs" if build.cuda is None else f"CUDA {build.cuda}"
        where = "no driver of NVIDIA" if driver is None else "no GPU"
        return Finding(NAME, "ok", f"{where}; torch {build.version} is built for {kind} and will use CPUs")
    return _compare(build, driver, gpus)


def _compare(build: TorchBuild, driver: DriverInfo, gpus: tuple[Gpu, ...]) -> Finding:
    names = ", ".join(f"{gpu.name} ({format_bytes(gpu.total)})" for gpu in gpus)
    newest = "{}.{}".format(*driver.cuda)
    found = f"{names}; driver {driver.version} supports CUDA {newest}"
    fitting = f"install a torch that is built for CUDA {newest} or older (its start page has the command)"
    if build.cuda is None:
        return Finding(NAME, "warning", f"{found}, but torch {build.version} is built for CPUs", fitting)
    found += f", torch {build.version} is built for CUDA {build.cuda}"
    major, minor = (int(part) for part in build.cuda.split(".")[:2])
    if not build.usable:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and hidden.strip() in ("", "-1"):
            advice = "unset CUDA_VISIBLE_DEVICES"
            return Finding(NAME, "warning", f"{found}; CUDA_VISIBLE_DEVICES hides all GPUs", advice)
        if (major, minor) > driver.cuda:
            advice = f"update the driver to one for CUDA {build.cuda}, or {fitting}"
            return Finding(NAME, "error", f"the driver is too old: {found}", advice)
        reason = build.reason or "torch does not say why"
        return Finding(NAME, "error", f"{found}, but cannot use them: {reason}", "run nvidia-smi; restart")
    if major > driver.cuda[0]:
        return Finding(NAME, "warning", f"the driver is too old: {found}", "update the driver")
    foreign = [gpus[i].name for i in range(min(len(gpus), build.usable)) if not _has_code(build, i)]
    if foreign:
        without = f"{found}, without code for {', '.join(foreign)}"
        return Finding(NAME, "error", without, "install a torch that is built for this GPU")
    return Finding(NAME, "ok", f"{found}, and can use {build.usable}")


def _has_code(build: TorchBuild, index: int) -> bool:
    """Return whether torch has code for a GPU: of its major architecture, not newer; or to be compiled."""
    major, minor = build.capabilities[index]
    numbers = [(kind, number) for kind, _, number in (one.partition("_") for one in build.architectures)]
    for kind, number in numbers:
        digits = "".join(letter for letter in number if letter.isdigit())
        own = int(digits[:-1] or 0), int(digits[-1:] or 0)
        if kind == "compute" and own <= (major, minor):
            return True
        if kind == "sm" and own[0] == major and own[1] <= minor:
            return True
    return not numbers  # it does not say
