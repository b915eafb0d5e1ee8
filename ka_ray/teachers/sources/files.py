"""Describe a teacher that is a checkpoint file: by what stands beside the weights, and by the weights."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ka_ray.errors import InputError
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.networks import TIMM, check_timm_name, import_timm
from ka_ray.teachers.sources.description import Description, express, name_classes
from ka_ray.teachers.sources.library_preprocessing import preprocessing_of_timm
from ka_ray.teachers.sources.recognise import Architecture, recognise_architecture
from ka_ray.teachers.sources.saved_details import (
    describe_settings,
    find_architecture_names,
    find_class_names,
    find_timm_arguments,
    find_torchvision_arguments,
)
from ka_ray.teachers.state_dict import find_weights


def describe_file(path: Path, network: str) -> Description:
    """Describe the model in a checkpoint.

    Args:
        path: The file, local or remote.
        network: The network that the config names; empty: it is recognised by the weights.

    Raises:
        InputError: The file cannot be read, or its weights fit no known network, or several that differ.
    """
    content = read_checkpoint(path)
    found = _find_network(path, content, network)
    pixels = _find_preprocessing(content, found)
    names, settings = find_class_names(content), ", ".join(describe_settings(content))
    notes = [
        found.note,
        f"names of the classes found under {names[1]!r}" if names else "",
        f"hyper_parameters: {settings}" if settings else "",
    ]
    return Description(
        kind="a checkpoint",
        network=found.name,
        arguments=found.arguments,
        classes=name_classes(names[0]) if names else (),
        checkpoint=path,
        notes=tuple(filter(None, notes)),
        **pixels,
    )


@dataclass(frozen=True)
class _FoundNetwork:
    """The network of a checkpoint; ``is_sure`` if no other network computes the same from its weights."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    is_sure: bool = True
    note: str = ""


def _find_network(path: Path, content: Any, network: str) -> _FoundNetwork:
    by_timm = find_timm_arguments(content)
    if network:
        same = (
            bool(by_timm)
            and network.removeprefix(TIMM).partition(".")[0] == by_timm["model"].partition(".")[0]
        )
        return _FoundNetwork(network, _timm_arguments(by_timm) if same else {})
    if by_timm:
        return _FoundNetwork(f"{TIMM}{by_timm['model']}", _timm_arguments(by_timm), note=NAMED_BY_SCRIPT)
    if by_torchvision := find_torchvision_arguments(content):
        return _FoundNetwork(by_torchvision["model"], note=NAMED_BY_SCRIPT)
    names = find_architecture_names(content)
    found = _recognise(path, content, names)
    note = _describe_recognised(found, names)
    return _FoundNetwork(found.network, dict(found.arguments), not found.equals, note)


NAMED_BY_SCRIPT = "network as the arguments of the training script in the file name it"


def _find_preprocessing(content: Any, network: _FoundNetwork) -> dict[str, Any]:
    """Return the fields of a description that :func:`express` returns; none if nothing says them."""
    by_timm, by_torchvision = find_timm_arguments(content), find_torchvision_arguments(content)
    if network.name.startswith(TIMM):
        check_timm_name(network.name)
    if by_timm and network.name.startswith(TIMM):
        source = "the arguments of timm's training script"
        return express(lambda: timm_preprocessing(network.name, by_timm), source)
    if by_torchvision:
        source = "the arguments of torchvision's training script"
        return express(lambda: _torchvision_preprocessing(by_torchvision), source)
    if network.name.startswith(TIMM) and network.is_sure:
        source = "timm's defaults for this network; the file does not say it"
        return express(lambda: timm_preprocessing(network.name), source)
    return {}


def _recognise(path: Path, content: Any, names: Mapping[str, str]) -> Architecture:
    try:
        found = recognise_architecture(find_weights(content), names)
    except InputError as error:
        raise InputError(f"from: {path}: {error}") from None
    if found is None:
        libraries = (
            "torchvision or timm" if importlib.util.find_spec("timm") else "torchvision (timm is absent)"
        )
        raise InputError(
            f"from: {path}: no classifier of {libraries} has weights of these names and shapes; name the "
            "teacher's `network`"
        )
    return found


def _describe_recognised(found: Architecture, names: Mapping[str, str]) -> str:
    key = names.get(found.network.removeprefix(TIMM))
    notes = [f"network recognised by its weights{f' and its name under {key!r}' if key else ''}"]
    if found.equals:
        notes.append(f"which computes the same as {', '.join(found.equals)}")
    if found.others:
        reason = "are named otherwise" if key else "have no published weights"
        notes.append(f"the weights also fit {', '.join(found.others)}, which {reason}")
    return f"{', '.join(notes)}; it has {found.num_classes} classes"


def timm_preprocessing(network: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the preprocessing of a timm model.

    Args:
        network: ``timm/`` and the name of the model.
        arguments: The arguments of timm's training script, which override the model's defaults; None: none.

    Returns:
        Keys of :class:`ka_ray.config.Preprocessing`.

    Raises:
        InputError: timm is not installed, or its transform cannot be expressed.
    """
    timm = import_timm(f"network {network!r}")
    config = timm.models.get_pretrained_cfg(network.removeprefix(TIMM), allow_unregistered=True)
    settings = timm.data.resolve_data_config(
        arguments or {}, pretrained_cfg=config.to_dict() if config else {}
    )
    return preprocessing_of_timm(settings)


def _timm_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network that timm's training script was given."""
    chosen = {"in_chans": arguments.get("in_chans"), "global_pool": arguments.get("gp")}
    given = {key: value for key, value in chosen.items() if value is not None}
    return given | dict(arguments.get("model_kwargs") or {})


def _torchvision_preprocessing(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the preprocessing with which torchvision's training script evaluates a model."""
    return {
        "preset": "torchvision",
        "size": arguments["val_resize_size"],
        "crop": arguments["val_crop_size"],
        "interpolation": arguments.get("interpolation", "bilinear"),
    }
