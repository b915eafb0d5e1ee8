"""Import a network factory, ``package.module:factory`` in a config, if it is from an allowed package.

Many functions of Python itself and of this package's dependencies would do harm: ``numpy:load`` unpickles a
file, ``torch.hub:load`` downloads and runs a repository. So of these only the models of torchvision and timm
are allowed. Whether a package that somebody else wrote may be named is checked before, with the config: see
:mod:`ka_ray.config.factories`.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from torch import nn

from ka_ray.config.factories import NETWORK_PACKAGES, is_of_python
from ka_ray.config.module_folders import make_modules_importable, module_folders
from ka_ray.errors import InputError

BUILT_IN_NETWORKS = ("ka_ray.teachers.plain", "ka_ray.student.merged")
"""The only modules of this package whose functions are allowed."""

ROOT_PACKAGES = ("ka_ray", "torch", "ray", "mlflow")
"""Packages whose dependencies are forbidden. The last three are dependencies of the first one. They are named
for the case that this package is not installed but only on the path, as in an uploaded job."""


def find_factory(network: str) -> Callable[..., Any]:
    """Import the function that builds a network.

    Args:
        network: Name of the network in the config, ``package.module:factory``.

    Returns:
        The function.

    Raises:
        InputError: The module cannot be imported, has no such function, or its package is not allowed.
    """
    module_name, _, factory_name = network.partition(":")
    # Checked before the import, because importing a module already runs its code.
    _check_allowed(network, module_name)
    make_modules_importable()
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # TypeError: a relative name, such as `.os`
        folders = "".join(f"{folder}, " for folder in module_folders())
        raise InputError(
            f"network {network!r}: cannot import {module_name!r}: {error}. Looked in {folders}and among "
            "the installed packages"
        ) from None
    factory: Any = getattr(module, factory_name, None)
    if not callable(factory):
        raise InputError(f"network {network!r}: {module_name!r} has no function {factory_name!r}")
    _check_registered(network, module_name.partition(".")[0], factory)
    # A module can contain functions that it imported from another module or wrapped in a partial. So the
    # module in which the function is defined must be allowed, too.
    function = factory
    while isinstance(function, partial):
        function = function.func
    _check_allowed(network, str(getattr(function, "__module__", None) or "builtins"))
    return factory  # type: ignore[no-any-return]  # callable() narrows an attribute to Any


def is_known_source(network: str) -> bool:
    """Return whether a function is one of this package's networks, or named in torchvision or timm.

    Args:
        network: Name of the network, ``package.module:factory``.
    """
    module = network.partition(":")[0]
    return module in BUILT_IN_NETWORKS or module.partition(".")[0] in NETWORK_PACKAGES


def _check_registered(network: str, package: str, factory: Any) -> None:
    """Check that a function of torchvision or timm is a classifier: others fetch files, or load them.

    torchvision's builders of detectors fetch a backbone by default, without any argument.
    """
    if package == "torchvision":
        from torchvision import models

        builders = [models.get_model_builder(name) for name in models.list_models(module=models)]
    elif package == "timm":
        import timm

        builders = [timm.model_entrypoint(name) for name in timm.list_models()]
    else:
        return
    is_network = isinstance(factory, type) and issubclass(factory, nn.Module)
    is_model = is_network and factory.__module__.startswith(f"{package}.models.")
    if not is_model and not any(factory is builder for builder in builders):
        raise InputError(
            f"network {network!r}: is no classifier of {package}; name one, such as "
            f"{'resnet18' if package == 'torchvision' else 'timm/resnet18'}"
        )


def _check_allowed(network: str, module: str) -> None:
    package = module.partition(".")[0]
    forbidden = is_of_python(package) or package in _dependency_packages()
    if module not in BUILT_IN_NETWORKS and forbidden:
        raise InputError(
            f"network {network!r}: {module!r} is not an allowed source of networks. Name a function of "
            "a module of your own, or a model of torchvision or timm; to load "
            "weights, set `checkpoint`"
        )


@lru_cache  # reading the metadata of all installed distributions takes a while
def _dependency_packages() -> frozenset[str]:
    """Return the import names of this package and of all its direct and indirect dependencies."""
    distributions, waiting = set[str](), [str(canonicalize_name(name)) for name in ROOT_PACKAGES]
    while waiting:
        name = waiting.pop()
        if name not in distributions:  # dependencies can be circular
            distributions.add(name)
            waiting += _requirements(name)
    # A distribution and what it installs can have different names: pyyaml installs yaml.
    names = {
        package
        for package, owners in packages_distributions().items()
        if distributions & {str(canonicalize_name(owner)) for owner in owners}
    }
    return frozenset((names | {"ka_ray"}) - {*NETWORK_PACKAGES})


def _requirements(distribution: str) -> list[str]:
    """Return the names of the distributions that a distribution requires without any extra."""
    try:
        lines = requires(distribution) or []
    except PackageNotFoundError:  # a requirement of another platform, or ka_ray in an uploaded job
        return []
    names = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # metadata of an old distribution, which pip would not install any more
            continue
        # Extras are optional, so a user's own package may well be one of them.
        if "extra ==" not in str(requirement.marker):
            names.append(str(canonicalize_name(requirement.name)))
    return names
