"""From ``package.module:factory`` in a config to the function, if it is one that may build networks.

A config names code that is installed or travels with the job, and nothing else of it is ever run. What Python
itself and this package's own dependencies offer would allow far more (``numpy:load`` unpickles,
``torch.hub:load`` fetches a repository), so of these torchvision and timm alone are accepted.
"""

import importlib
import re
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import Any

from ka_ray.errors import InputError

OF_NETWORKS = {"torchvision", "timm"}
OWN = "ka_ray.teachers.plain"
ROOTS = ("ka_ray", "torch", "ray", "mlflow")


def find_factory(network: str) -> Callable[..., Any]:
    """Find the function of a network ``package.module:factory``.

    Raises:
        InputError: It cannot be imported, is no function, or is of a package that builds no networks.
    """
    module_name, _, factory_name = network.partition(":")
    _check(network, module_name)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"network {network!r}: cannot import {module_name!r}: {error}") from None
    factory: Any = getattr(module, factory_name, None)
    if not callable(factory):
        raise InputError(f"network {network!r}: {module_name!r} has no function {factory_name!r}")
    defined = factory
    while isinstance(defined, partial):
        defined = defined.func
    _check(network, str(getattr(defined, "__module__", None) or "builtins"))
    return factory  # type: ignore[no-any-return]  # callable() narrows an attribute to Any


def _check(network: str, module: str) -> None:
    root = module.partition(".")[0]
    if module != OWN and (root in sys.stdlib_module_names or root in _own_packages()):
        raise InputError(
            f"network {network!r}: {module!r} is no place of networks; a factory comes from torchvision, "
            "timm, a package of yours, or a module that travels with the job, its weights from `checkpoint`"
        )


@lru_cache
def _own_packages() -> frozenset[str]:
    """The import names of this package and of all that it depends on."""
    found, waiting = set[str](), [_normal(name) for name in ROOTS]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _requirements(name)
    names = {top for top, owners in packages_distributions().items() if found & set(map(_normal, owners))}
    return frozenset((names | {"ka_ray"}) - OF_NETWORKS)


def _requirements(name: str) -> list[str]:
    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return []
    names = (re.match(r"[\w.\-]+", line) for line in lines if "extra ==" not in line)
    return [_normal(match[0]) for match in names if match]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
