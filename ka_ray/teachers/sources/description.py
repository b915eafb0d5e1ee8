"""What the source of a teacher says of it: the network, its classes, its preprocessing and its weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ka_ray.config import Preprocessing, TeacherConfig
from ka_ray.config.class_names import order_names
from ka_ray.errors import InputError


@dataclass(frozen=True)
class Description:
    """What was found out about a teacher. What its source does not say is empty.

    Attributes:
        kind: What the source is, for the user, such as ``a folder of timm``.
        network: Name of the network as in the config.
        arguments: Keyword arguments of the network.
        classes: Names of the classes in the order of the scores.
        preprocessing: Keys of :class:`ka_ray.config.Preprocessing`.
        preprocessing_source: Where these keys come from, for the user.
        preprocessing_problem: Why the source's preprocessing cannot be used; empty if it can.
        checkpoint: The file with the weights.
        scores: The keys `output` and `final_activation`.
        notes: What else the user should know.
    """

    kind: str
    network: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    preprocessing_source: str = ""
    preprocessing_problem: str = ""
    checkpoint: Path | None = None
    scores: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


UNNAMED = ("output 1", "output 2")
"""Stand for the classes of a network whose classes mean nothing."""

SHOWN_CLASSES = 4
"""How many class names are shown to the user."""

PLACEHOLDER = re.compile(r"LABEL_\d+")
"""Names that transformers gives to classes without names."""


def name_classes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of classes as a source lists them, each made unique; empty if they are placeholders.

    ImageNet has two classes called `crane`, for example; the second becomes `crane (517)`, after its index.
    """
    if all(PLACEHOLDER.fullmatch(name) for name in names):
        return ()
    seen, unique = set[str](), list[str]()
    for index, name in enumerate(names):
        unique.append(f"{name} ({index})" if name in seen else name)
        seen.add(name)
    return tuple(unique)


def read_class_names(names: Any) -> tuple[str, ...]:
    """Return class names as :func:`name_classes` does; empty if the source's form is not understood.

    Args:
        names: A list of names, or a mapping of index -> name or name -> index.
    """
    try:
        return name_classes(order_names(names))
    except ValueError:  # gaps in the indices, numbers instead of names: the user has to give them
        return ()


def express(describe: Callable[[], Mapping[str, Any]], source: str) -> dict[str, Any]:
    """Express a library's preprocessing, or say why it cannot be; it is needed only if the user gives none.

    Args:
        describe: Returns keys of :class:`ka_ray.config.Preprocessing`.
        source: Where they come from, for the user.

    Returns:
        The fields `preprocessing` and `preprocessing_source`, or `preprocessing_problem`, of a description.
    """
    try:
        return {"preprocessing": describe(), "preprocessing_source": source}
    except InputError as error:
        return {"preprocessing_problem": str(error)}
    except Exception as error:  # values that make no sense: many types
        problem = f"{source} cannot be understood ({type(error).__name__}: {str(error)[:200]})"
        return {"preprocessing_problem": problem}


def merge_preprocessing(found: Mapping[str, Any], given: Preprocessing) -> Preprocessing:
    """Return the preprocessing of a source, overridden key by key by that of the config.

    Args:
        found: Keys that the source says.
        given: The section of the config. If it names a preset, what was found is not used.
    """
    own = {key: getattr(given, key) for key in given.model_fields_set}
    if own.get("preset") is not None:
        return given
    kept = dict(found)
    if own.keys() & {"size", "crop_fraction"}:  # two ways to say the resized size
        kept = {key: value for key, value in kept.items() if key not in ("size", "crop_fraction")}
    # A larger crop than the size that was given would frame small images in black.
    if own.get("size") is not None and "crop" not in own and (kept.get("crop") or 0) > own["size"]:
        del kept["crop"]
    return Preprocessing.model_validate({**kept, **own})


def describe_preprocessing(preprocessing: Preprocessing) -> str:
    """Return a preprocessing in words, for the user."""
    crop, size = preprocessing.crop, preprocessing.size
    resized = f"{size} pixels" if size else f"crop / {preprocessing.crop_fraction}" if crop else "images.size"
    cut = f", crop {crop}" if crop else ""
    mean, std = (" ".join(f"{value:.4g}" for value in key) for key in (preprocessing.mean, preprocessing.std))
    resize = preprocessing.resize or "as images.resize says,"
    return f"{resize} to {resized}{cut}, {preprocessing.interpolation}, mean {mean}, std {std}"


def describe_result(config: TeacherConfig, merged: TeacherConfig, found: Description) -> str:
    """Return what was found out about a teacher, for the user, in several lines.

    Args:
        config: The section of the teacher as it was given.
        merged: The section, filled in.
        found: What its source says.
    """
    names = list(merged.classes)
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    is_teacher = merged.classes != UNNAMED
    name = f"teacher {merged.name}" if is_teacher else "descriptive network"
    lines = [
        f"{name}: {found.kind}" + (f", {config.from_}" if config.from_ else ""),
        f"network: {merged.network}",
        *([f"classes: {len(names)}: {', '.join(names[:SHOWN_CLASSES])}{more}"] if is_teacher else []),
        f"pixels: {describe_preprocessing(merged.preprocessing)} ({describe_origin(config, found)})",
        *found.notes,
    ]
    return "\n    ".join(lines)


def describe_origin(config: TeacherConfig, found: Description) -> str:
    """Return where the preprocessing of a teacher comes from, for the user.

    Args:
        config: The section of the teacher as it was given.
        found: What its source says.
    """
    given = "the config" if config.preprocessing.model_fields_set else ""
    source = " and ".join(filter(None, [given, found.preprocessing_source]))
    return f"from {source}" if source else "assumed: the source does not say it; compare with your training"
