"""Which functions a config may name to build networks: `package.module:function`."""

import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from ka_ray.config.base import Section
from ka_ray.config.module_folders import make_modules_importable

NETWORK_PACKAGES = ("torchvision", "timm")
"""Installed packages whose registered builders of models need no consent."""

PACKAGE_FOLDERS = {"site-packages", "dist-packages"}
"""Names of the folders of installed packages."""


class FactoriesSection(Section):
    """The key `factories`, and the check of the functions that the other keys name.

    A project's own modules need no consent: beside the config, in the current folder, or installed in
    editable mode. Other installed packages do, because nearly all have functions that do harm: pip, pytest
    and huggingface_hub are installed nearly everywhere.
    """

    factories: tuple[str, ...] = Field(
        (),
        description="Installed packages whose functions may build networks, besides torchvision's and timm's "
        "models. The modules of your own project need not be named.",
    )

    @model_validator(mode="after")
    def _factories_have_consent(self) -> "FactoriesSection":
        make_modules_importable()
        for key, network in list_networks(self):
            package = network.partition(":")[0].partition(".")[0]
            if ":" in network and is_of_python(package):
                raise ValueError(
                    f"{key}: {network!r} is a function of Python itself, which builds no networks"
                )
            trusted = (*NETWORK_PACKAGES, *self.factories, "ka_ray")
            if ":" in network and package not in trusted and is_installed(package):
                raise ValueError(
                    f"{key}: {network!r} is a function of the installed package {package}; if it builds "
                    f"networks and you trust it, set factories: [{package}]"
                )
        return self


def list_networks(section: Any) -> Iterator[tuple[str, str]]:
    """Yield key and value of every place that names a network.

    Args:
        section: The config of a run, or of the training of a teacher.
    """
    teachers = [*getattr(section, "teachers", ()), *filter(None, [getattr(section, "teacher", None)])]
    places = {f"teachers.{teacher.name}": teacher for teacher in teachers}
    places["student"] = getattr(section, "student", None)
    places["scores.descriptive"] = getattr(getattr(section, "scores", None), "descriptive", None)
    for key, place in places.items():
        if place is not None:
            yield f"{key}.network", place.network or ""
            # A student that is a teacher: the function that its folder names has consent if it stands here.
            yield f"{key}.arguments.network", str(place.arguments.get("network", ""))


def is_installed(package: str) -> bool:
    """Return whether a package lies where pip installs packages, or is Python's own; its code is not run.

    Args:
        package: Name of a top-level package or module.
    """
    own = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    return is_of_python(package) or any(
        PACKAGE_FOLDERS.intersection(place.parts) or own.intersection(place.parents)
        for place in _find_places(package)
    )


def is_of_python(package: str) -> bool:
    """Return whether a package belongs to Python itself, as `os` and `test` do; its code is not run.

    Args:
        package: Name of a top-level package or module.
    """
    if package in sys.stdlib_module_names:
        return True
    own = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    return any(
        own.intersection(place.parents) and not PACKAGE_FOLDERS.intersection(place.parts)
        for place in _find_places(package)
    )


def _find_places(package: str) -> list[Path]:
    """Return the files and folders of a package."""
    try:
        spec = find_spec(package)
    except ValueError:  # a module that was made by hand
        return []
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
    return [Path(place) for place in places if place]
