"""Load configs from YAML, or from a mapping, with dotted overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ka_ray.config.base import AnySection
from ka_ray.config.job_paths import ClusterContext
from ka_ray.config.mixture import ImagesConfig
from ka_ray.config.module_folders import add_module_folders
from ka_ray.config.yaml_text import parse_yaml
from ka_ray.errors import InputError
from ka_ray.storage.files import exists, read_text
from ka_ray.storage.uris import CREDENTIALS_PATTERN, to_path

MAX_PROBLEMS = 20
"""Largest number of mistakes that an error message lists."""


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
        raise InputError(_explain("images", tree, error)) from None


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
        raise InputError(_explain(place, tree, error)) from None


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
            raise InputError(f"--set {override!r}: {part!r} must be an index below {len(node)}")
        return node[int(part)]
    if isinstance(node, dict):
        return node[part]
    raise InputError(f"--set {override!r}: {part!r} is below a value, not a mapping")


def _explain(path: str, tree: dict[str, Any], error: ValidationError) -> str:
    lines = [f"{path}: {error.error_count()} problem(s)"]
    for problem in error.errors()[:MAX_PROBLEMS]:
        is_about_key = problem["type"] in ("extra_forbidden", "missing")  # not about its value
        key = ".".join(_written_keys(tree, problem["loc"], is_about_key))
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key"
        secret = CREDENTIALS_PATTERN.search(repr(problem["input"]))
        given = f" (given: {problem['input']!r})" if _is_short(problem["input"]) and not secret else ""
        lines.append(f"  {key + ': ' if key else ''}{message}{given}")
    if error.error_count() > MAX_PROBLEMS:
        lines.append(f"  and {error.error_count() - MAX_PROBLEMS} more")
    return "\n".join(lines)


def _written_keys(tree: Any, loc: tuple[Any, ...], is_about_key: bool) -> list[str]:
    """Return only the keys that the user wrote; pydantic adds the names of union members to the location."""
    keys = []
    for place, part in enumerate(loc):
        if (isinstance(tree, dict) and part in tree) or _has_item(tree, part):
            tree = tree[part]
        elif place < len(loc) - 1 or not isinstance(tree, dict) or not is_about_key:
            continue
        keys.append(str(part))
    return keys


def _has_item(tree: Any, part: Any) -> bool:
    return isinstance(tree, list) and isinstance(part, int) and part < len(tree)


def _is_short(value: Any) -> bool:
    return not isinstance(value, dict) and len(repr(value)) <= 80
