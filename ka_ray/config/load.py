"""Load configs from YAML, or from a mapping, with dotted overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ka_ray.config.base import AnySection
from ka_ray.config.job_paths import ClusterContext
from ka_ray.config.mixture import ImagesConfig
from ka_ray.config.module_folders import add_module_folders
from ka_ray.config.problems import explain_problems
from ka_ray.config.spelling import suggest
from ka_ray.config.yaml_text import parse_yaml
from ka_ray.errors import InputError
from ka_ray.storage.files import exists, read_text
from ka_ray.storage.uris import to_path


def load_images(tree: dict[str, Any], overrides: Sequence[str] = ()) -> ImagesConfig:
    """Validate the config of an image source.

    Args:
        tree: The config as a mapping; changed in place by the overrides.
        overrides: Items ``dotted.key=value``, applied in this order.

    Raises:
        InputError: A key cannot work; the message lists every such key.
    """
    for override in overrides:
        _apply(tree, override)
    adapter: TypeAdapter[ImagesConfig] = TypeAdapter(ImagesConfig)
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        raise InputError(explain_problems(ImagesConfig, "images", tree, error)) from None


def load(
    kind: type[AnySection], path: str | Path, overrides: Sequence[str], cluster: ClusterContext | None = None
) -> AnySection:
    """Read a YAML file, apply overrides and validate everything.

    Modules beside the file can be imported afterwards: a network's factory may be in one.

    Args:
        kind: The class of the config.
        path: The YAML file.
        overrides: Items ``dotted.key=value``, applied in this order.
        cluster: Context of a config that is sent to a cluster: absolute paths need not exist on this
            machine, relative ones are collected. None: the run starts here, so all paths must exist.

    Raises:
        InputError: A key cannot work; the message lists every such key.
    """
    tree = read_tree(path, overrides)
    add_module_folders(to_path(path))
    return _validate(kind, tree, str(path), cluster)


def load_tree(
    kind: type[AnySection], tree: dict[str, Any], overrides: Sequence[str], place: str
) -> AnySection:
    """Apply overrides to a config that is no file, and validate everything.

    Args:
        kind: The class of the config.
        tree: The config as a mapping; changed in place by the overrides.
        overrides: Items ``dotted.key=value``, applied in this order.
        place: What stands for the path of the file in messages.

    Raises:
        InputError: A key cannot work; the message lists every such key.
    """
    for override in overrides:
        _apply(tree, override)
    add_module_folders(Path("config"))  # as for a file in the current folder
    return _validate(kind, tree, place)


def _validate(
    kind: type[AnySection], tree: dict[str, Any], place: str, cluster: ClusterContext | None = None
) -> AnySection:
    try:
        return kind.model_validate(tree, context=cluster)
    except ValidationError as error:
        raise InputError(explain_problems(kind, place, tree, error)) from None


def with_overrides(config: AnySection, overrides: Sequence[str]) -> AnySection:
    """Change a config by overrides, and validate everything again.

    Args:
        config: The config; the result is a changed copy.
        overrides: Items ``dotted.key=value``, applied in this order.

    Raises:
        InputError: A key cannot work; the message lists every such key.
    """
    # Only what was given: what is left open of a teacher is found out later, and must stay open.
    tree = config.model_dump(mode="json", exclude_unset=True)
    for override in overrides:
        _apply(tree, override)
    return _validate(type(config), tree, " ".join(overrides))


def read_tree(path: str | Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Read a YAML file and apply overrides, without validating the result.

    Args:
        path: The YAML file.
        overrides: Items ``dotted.key=value``, applied in this order.

    Raises:
        InputError: The file is no YAML mapping, or an override does not fit it.
    """
    tree = read_yaml(to_path(path))
    for override in overrides:
        _apply(tree, override)
    return tree


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: The file is missing, not YAML, or not a mapping.
    """
    if not exists(path):
        raise InputError(f"config {path} does not exist")
    try:
        tree = parse_yaml(read_text(path))
    except (ValueError, OSError) as error:
        raise InputError(f"config {path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"config {path} must be a mapping of keys, it is a {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Apply one override; its value is YAML, and a number or a `name` in its key is an item of a list."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override!r}: must read dotted.key=value")
    try:
        parsed = parse_yaml(value)
    except ValueError as error:
        raise InputError(f"--set {override!r}: the value is not YAML: {error}") from None
    *parents, last = key.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _child(node, part, override)
    if isinstance(node, list):
        _child(node, last, override)
        node[int(last)] = parsed
    elif isinstance(node, dict):
        node[last] = parsed
    else:
        raise InputError(f"--set {override!r}: {'.'.join(parents)} is a value, it has no keys")


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, list):
        named = [item for item in node if isinstance(item, dict) and item.get("name") == part]
        if named:  # teachers.dogs
            return named[0]
        if part not in map(str, range(len(node))):
            names = [str(item["name"]) for item in node if isinstance(item, dict) and "name" in item]
            raise InputError(
                f"--set {override!r}: {part!r} must be an index below {len(node)}{suggest(part, names)}"
            )
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise InputError(f"--set {override!r}: {part!r} is below a value, not a mapping")
