"""Build the config of `ka-ray merge` and `ka-ray init` from teachers and a folder of images."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ka_ray.config import DESCRIPTIVE, NOBODY, STUDENT, Config, load_tree
from ka_ray.config.ranges import MAX_NAME_LENGTH
from ka_ray.config.source_kind import guess_source
from ka_ray.config.teachers import name_of_source
from ka_ray.errors import InputError
from ka_ray.storage.files import exists
from ka_ray.storage.uris import to_path

NAMED = re.compile(r"(?P<name>[A-Za-z0-9_\-]+)=(?P<value>.+)", re.DOTALL)
"""``NAME=VALUE``; what stands before the first ``=`` in a path that has a folder is no name."""

DEFAULT_SIZE = 224
"""Height and width, in pixels, of the images of networks that name no size, unless all images are smaller."""

RESERVED = (STUDENT, NOBODY, DESCRIPTIVE)
"""Names that no teacher may have."""


@dataclass(frozen=True)
class Choice:
    """The value of a key that was found out.

    Attributes:
        value: The value.
        reason: Why the key has it, for the user.
    """

    value: Any
    reason: str


@dataclass(frozen=True)
class MergeRequest:
    """What to merge, as it was given.

    Attributes:
        teachers: ``SOURCE``, ``NAME=SOURCE``, or a section of a teacher; see `docs/teachers.md`.
        images: Folder, list or files of the images that the student learns from.
        output: The output folder; None: ``runs/`` and the name of the run.
        hints: Teacher, or nobody -> folder or list of images that show its classes.
        evaluate: The same, of images that the student is evaluated on; None: some of `images`.
        overrides: Items ``dotted.key=value``; in a key, a teacher's name is its section.
    """

    teachers: Sequence[str | Path | Mapping[str, Any]]
    images: str | Path
    output: str | Path | None = None
    hints: Mapping[str, str | Path] = field(default_factory=dict)
    evaluate: str | Path | None = None
    overrides: Sequence[str] = ()


def build_config(
    request: MergeRequest, choices: Mapping[str, Choice] = MappingProxyType({})
) -> tuple[Config, dict[str, Any]]:
    """Build the config of a run that merges teachers, and check it; no model and no image is read.

    Args:
        request: What to merge.
        choices: Dotted key -> what was found out; the request's overrides count more.

    Returns:
        The config; and the mapping that it was made from, with the paths as they were given.

    Raises:
        InputError: A path does not exist, a hint is for no teacher, or a key cannot work.
    """
    teachers = _name_teachers(request.teachers)
    names = [str(teacher["name"]) for teacher in teachers]
    for name in request.hints:
        if name not in (*names, NOBODY):
            raise InputError(
                f"hints {name}={request.hints[name]}: no teacher is called {name}; there are "
                f"{', '.join(names)}, and {NOBODY} for images of no teacher"
            )
    tree: dict[str, Any] = {"name": _name_run(request.output, names)}
    if request.output is not None:
        tree["output"] = str(request.output)
    tree["images"] = _section(request.images, "images")
    if request.evaluate is not None:
        tree["evaluation"] = {"images": _section(request.evaluate, "evaluate")}
    tree["teachers"] = teachers
    if request.hints:
        tree["scores"] = {"hints": {name: str(path) for name, path in request.hints.items()}}
    found = [f"{key}={json.dumps(choice.value)}" for key, choice in choices.items()]
    return load_tree(Config, tree, [*found, *request.overrides], "the config"), tree


def parse_hints(hints: Sequence[str]) -> dict[str, str]:
    """Return teacher -> folder of hints.

    Args:
        hints: Items ``NAME=FOLDER``.

    Raises:
        InputError: An item has another form, or a name is given twice.
    """
    parsed: dict[str, str] = {}
    for item in hints:
        match = NAMED.fullmatch(item)
        if match is None:
            raise InputError(f"--hints {item!r}: must read NAME=FOLDER, such as dogs=photos/dogs")
        if match["name"] in parsed:
            raise InputError(f"--hints {item!r}: {match['name']} has a folder already; a list may name both")
        parsed[match["name"]] = match["value"]
    return parsed


def to_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as overrides: ``joint={"epochs": 1}`` becomes ``joint.epochs=1``.

    Args:
        values: Key of the config, which may be dotted -> value. A mapping adds to a section.
    """
    overrides = []
    for key, value in values.items():
        inner = {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value}
        overrides += [f"{k}={json.dumps(v, default=str)}" for k, v in inner.items()]
    return overrides


def _name_teachers(given: Sequence[str | Path | Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the sections of the teachers. Names that were given stay; others become valid and unique."""
    sections = [_split_name(teacher) for teacher in given]
    taken = {*RESERVED, *(section["name"] for section in sections if section.get("name"))}
    for section in sections:
        if section.get("name") or not section.get("from"):
            continue
        base = name = name_of_source(str(section["from"]))
        number = 1
        while name in taken:
            number += 1
            name = f"{base[: MAX_NAME_LENGTH - 4]}_{number}"
        taken.add(name)
        section["name"] = name
    return [{"name": section.get("name", ""), **section} for section in sections]


def _split_name(teacher: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(teacher, Mapping):
        return dict(teacher)
    match = NAMED.fullmatch(str(teacher))
    # Lightning calls its checkpoints epoch=9-step=1000.ckpt.
    if match is None or isinstance(teacher, Path) or exists(to_path(str(teacher))):
        return {"from": str(teacher)}
    return {"name": match["name"], "from": match["value"]}


def _name_run(output: str | Path | None, teachers: Sequence[str]) -> str:
    last = "" if output is None else str(output).rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^A-Za-z0-9_\-]+", "_", last).strip("_") or "_".join(teachers)
    return name[:MAX_NAME_LENGTH]


def _section(path: str | Path, option: str) -> dict[str, Any]:
    """Return the section of an image source whose kind its path tells."""
    if not exists(to_path(path)):
        raise InputError(f"--{option} {path} does not exist; give a folder of images")
    kind = guess_source(to_path(path))
    labels = {"labelled": False} if kind == "folder" else {}
    return {"source": kind, "path": str(path), **labels, "size": DEFAULT_SIZE}
