"""Find the module paths of the taps in the student and in the teachers."""

from collections.abc import Mapping
from typing import Any

from ka_ray.config import STUDENT, Config, TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.stack import EMBEDDING, OWNERS, P_NOBODY, SCORES, TARGETS
from ka_ray.images.sources import OWNER
from ka_ray.student import FAMILIES, find_family, find_valid_taps
from ka_ray.student.value_chain import is_child_name
from ka_ray.teachers import build_network

RESERVED = {"image_id", "image", "label", OWNER, "draws", "target", TARGETS, EMBEDDING}
RESERVED |= {OWNERS, P_NOBODY}
"""Names that a tap cannot have, because other columns of the stored features have them."""

MAX_LISTED = 12
"""Maximum number of valid taps that an error message lists."""


def resolve_student_paths(
    config: Config, network: str, arguments: dict[str, Any], num_classes: int
) -> dict[str, str]:
    """Find where each tap of the config lies in the student.

    Args:
        config: Config of the run.
        network: The student's network.
        arguments: Keyword arguments with which the network is built.
        num_classes: Number of classes of all teachers together.

    Returns:
        tap -> layer of the family or module path, in the order of the config; empty if it names none and no
        features are needed.

    Raises:
        InputError: A tap's name cannot be used, taps or paths are missing, or the network cannot be built.
    """
    _check_names(config)
    if network in FAMILIES and config.student.widths is None:
        return _family_paths(config, network, arguments)
    try:
        built = build_network(network, arguments, num_classes)
    except InputError as error:  # it does not say which of the config's networks is meant
        raise InputError(f"student.network: {error}") from None
    if not config.taps and not config.learns_layers:
        return {}
    valid = find_valid_taps(built)
    if not config.taps:
        shown = ", ".join(valid[:MAX_LISTED])
        more = f" and {len(valid) - MAX_LISTED} more" if len(valid) > MAX_LISTED else ""
        raise InputError(f"taps: name them; the student {network!r} can be cut at: {shown}{more}")
    paths = {tap: _student_path(config, tap, network, arguments) for tap in config.taps}
    missing = [tap for tap, path in paths.items() if path is None]
    if missing:
        raise InputError(
            f"taps.{missing[0]}.{STUDENT}: is missing; no teacher is a {network!r} that the path could be "
            "taken from, so name the student's own path"
        )
    return {tap: path for tap, path in paths.items() if path is not None}


def _check_names(config: Config) -> None:
    # A tap is a column of the stored features and a child of a ModuleDict, whose methods have names, too.
    for tap in config.taps or ():
        if tap in RESERVED or not is_child_name(tap):
            raise InputError(f"taps.{tap}: a tap cannot have this name; choose another one")


def _family_paths(config: Config, network: str, arguments: Mapping[str, Any]) -> dict[str, str]:
    """Find the layer of the family for each tap: by the tap's name, the layer's name or its module path."""
    family = find_family(network, dict(arguments))
    module_paths = {layer.name: layer.module_path for layer in family[:-1]}  # the last one gives the scores
    if config.taps is None:
        others = any(teacher.network != network for teacher in config.teachers)
        return {} if others and not config.learns_layers else {name: name for name in module_paths}
    layer_at, layers = {path: name for name, path in module_paths.items()}, {}
    for tap, path in config.taps.items():
        # `conv1: norm1` taps the student's layer conv1, whatever the path means in the teachers.
        explicit = isinstance(path, dict) and STUDENT in path
        layer = (
            tap
            if tap in module_paths and not explicit
            else _student_path(config, tap, network, arguments) or ""
        )
        layers[tap] = layer_at.get(layer, layer)
    unknown = {tap: layer for tap, layer in layers.items() if layer not in module_paths or tap == SCORES}
    if unknown or len(set(layers.values())) < len(layers) or not layers:
        raise InputError(
            f"taps: {unknown or layers} must name different layers of the student {network!r}, by the tap's "
            f"name or as taps.{next(iter(unknown), 'TAP')}.{STUDENT}; the layers are {list(module_paths)}"
        )
    return layers


def _student_path(config: Config, tap: str, network: str, arguments: Mapping[str, Any]) -> str | None:
    """Return a tap's path in the student: as given, or as in the first teacher with the same network."""
    assert config.taps is not None
    path = config.taps[tap]
    teacher = next((t.name for t in config.teachers if is_same_network(t, network, arguments)), None)
    if isinstance(path, str):  # one path for all teachers
        return path if teacher is not None else None
    return path.get(STUDENT, path[teacher] if teacher is not None else None)


def is_same_network(teacher: TeacherConfig, network: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a teacher's network is of the same architecture as the student's.

    Args:
        teacher: Section of the teacher in the config.
        network: The student's network.
        arguments: The student's arguments; a factory such as ``timm:create_model`` builds the architecture
            that they call ``model_name``. Without this name, they count as those of the teacher.
    """
    own = teacher.arguments.get("model_name")
    return teacher.network == network and arguments.get("model_name", own) == own


def resolve_teacher_paths(
    config: Config, student_paths: Mapping[str, str], network: str, arguments: dict[str, Any]
) -> dict[str, dict[str, str]]:
    """Find where each tap lies in each teacher.

    Args:
        config: Config of the run.
        student_paths: Result of :func:`resolve_student_paths`.
        network: The student's network.
        arguments: Keyword arguments with which the student's network is built.

    Returns:
        teacher -> tap -> module path.

    Raises:
        InputError: The config names no taps, and a teacher's network differs from the student's.
    """
    names = [teacher.name for teacher in config.teachers]
    if not student_paths:
        return {name: {} for name in names}
    if config.taps is None:
        others = [t.name for t in config.teachers if t.network != network]
        if others:
            raise InputError(
                f"taps: name them; the taps of the student's family {network!r} do not exist in the teachers "
                f"{others}, which have other networks"
            )
        layers = {layer.name: layer.module_path for layer in find_family(network, arguments)}
        return {name: {tap: layers[tap] for tap in student_paths} for name in names}
    return {
        name: {tap: path if isinstance(path, str) else path[name] for tap, path in config.taps.items()}
        for name in names
    }
