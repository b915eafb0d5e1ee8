"""Which files and modules the networks of a config name, before it is validated."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIGS = ("config.json", "student.json")
"""Files that say what the weights beside them are."""


def model_folders(tree: dict[str, Any]) -> Iterator[str]:
    """Yield the folders of models that the config names: teachers, and the descriptive network.

    Of a file in such a folder, the folder's config is needed, too.
    """
    for model in [*(tree.get("teachers") or []), tree.get("teacher"), _find_descriptive(tree)]:
        source = model.get("from") if isinstance(model, dict) else model
        path = Path(source.removeprefix("local-dir:")) if isinstance(source, str) else None
        if path is not None and path.is_dir():
            yield str(path)
        elif path is not None and path.is_file() and any((path.parent / name).is_file() for name in CONFIGS):
            yield str(path.parent)


def network_sections(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the sections of a config that describe a network."""
    others = [tree.get("teacher"), tree.get("student"), _find_descriptive(tree)]
    for section in [*(tree.get("teachers") or []), *others]:
        if isinstance(section, dict):
            yield section


def _find_descriptive(tree: dict[str, Any]) -> Any:
    scores = tree.get("scores")
    return scores.get("descriptive") if isinstance(scores, dict) else None


def files_in_arguments(network: dict[str, Any]) -> Iterator[str]:
    """Yield the arguments of a network's factory that are relative paths of files here.

    A folder is not sent: any text, e.g. ``relu``, may happen to be the name of one.
    """
    for value in (network.get("arguments") or {}).values():
        if isinstance(value, str) and not Path(value).is_absolute() and Path(value).is_file():
            yield value


def factory_module(network: dict[str, Any]) -> str | None:
    """Return the top-level module of a factory ``package.module:factory``; None if a network has none."""
    name = network.get("network")
    return name.partition(":")[0].partition(".")[0] if isinstance(name, str) and ":" in name else None
