"""What will be built, worked out before the first image is read: taps, shapes, widths, the student.

Shapes: S stacked channels of a tap, C code channels, *space height and width.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ka_ray.amalgamation import METHODS, LabelSets
from ka_ray.config import STUDENT, Config, EnergyWidths, LikeTeacher
from ka_ray.errors import InputError
from ka_ray.features.resize import check_resizable
from ka_ray.features.stack import SCORES, TARGETS
from ka_ray.student import FAMILIES, Family, Student, StudentSpec, find_family, working_taps
from ka_ray.teachers import Teacher, build_network

RESERVED = {"image_id", "image", "label", "draws", "target", TARGETS}
"""Names of other columns."""

FLOAT16_BYTES = 2
MAX_LISTED = 12


@dataclass(frozen=True)
class Plan:
    """The checked plan of a run.

    Attributes:
        label_sets: The teachers' classes, their union and the rule for the scores.
        paths: teacher -> tap -> module path.
        channels: tap -> channels of each teacher's features there, in the teachers' order.
        spaces: tap -> the student's height and width there (none for a vector), to which all are brought.
        spec: The student.
        kept: tap -> parameters of an adapter that cannot be folded there.
    """

    label_sets: LabelSets
    paths: Mapping[str, Mapping[str, str]]
    channels: Mapping[str, tuple[int, ...]]
    spaces: Mapping[str, tuple[int, ...]]
    spec: StudentSpec
    kept_adapters: Mapping[str, int]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tap -> shape of the stacked features of one image, ``(S, *space)``."""
        return {tap: (sum(channels), *self.spaces[tap]) for tap, channels in self.channels.items()}

    def code_shapes(self) -> dict[str, dict[str, Any]]:
        """Describe what auto-encoders depend on, tap by tap, as JSON keeps it."""
        return {
            tap: {
                "channels": list(channels),
                "paths": [paths[tap] for paths in self.paths.values()],
                "space": list(self.spaces[tap]),
                "width": self.spec.widths[tap],
            }
            for tap, channels in self.channels.items()
        }

    @property
    def feature_bytes(self) -> int:
        """Bytes that the stacked features of one image take on disk."""
        return FLOAT16_BYTES * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def image_bytes(self) -> int:
        """Bytes that one image and its scores take on disk."""
        return 3 * self.spec.image_size**2 + FLOAT16_BYTES * self.label_sets.num_scores


def make_plan(config: Config, teachers: Sequence[Teacher]) -> Plan:
    """Check teachers, taps and student against one another.

    Where ``codes.widths`` is a share of the variance, the student's own stand in until that is measured.

    Raises:
        InputError: A tap does not exist or cannot be cut at, features cannot be brought to the student's
            size, a code is wider than its stacked features, or the label sets do not suit the rule.
    """
    label_sets = LabelSets({t.name: t.classes for t in teachers}, config.scores.rule, config.scores.center)
    network, arguments = _student_network(config)
    student_paths = _student_paths(config, network, arguments, len(label_sets.classes))
    paths = _teacher_paths(config, student_paths, network, arguments)
    found = {t.name: t.check_forward_pass(config.images.size, paths[t.name]) for t in teachers}
    preprocessing = config.student.preprocessing or config.teachers[0].preprocessing
    spec = StudentSpec(
        network=network,
        arguments=arguments,
        paths=student_paths,
        widths=_family_widths(config, student_paths, network, arguments, found),
        label_sets=dict(label_sets.by_teacher),
        rule=label_sets.rule,
        center=label_sets.center,
        image_size=config.images.size,
        resize=config.images.resize,
        preprocessing=preprocessing.model_dump(mode="json"),
    )
    student = Student(spec)
    taps = [tap for tap in student.stages if tap != SCORES]
    channels = {tap: tuple(found[t.name][tap][0] for t in teachers) for tap in taps}
    for tap in taps:
        for teacher in teachers:
            check_resizable(tap, teacher.name, found[teacher.name][tap], student.shapes[tap][1:])
    widths = {tap: student.shapes[tap][0] for tap in taps}
    _check_widths(config, widths, channels, found)
    spec = replace(spec, paths={tap: student_paths[tap] for tap in taps}, widths=widths)
    spaces = {tap: student.shapes[tap][1:] for tap in taps}
    return Plan(label_sets, paths, channels, spaces, spec, student.kept_adapters)


def _student_network(config: Config) -> tuple[str, dict[str, Any]]:
    first = config.teachers[0]
    network = config.student.network or first.network
    arguments = dict(config.student.arguments)
    if network == first.network:
        inherited = dict(first.arguments)
        if network in FAMILIES:
            known = inspect.signature(FAMILIES[network]).parameters
            inherited = {key: value for key, value in inherited.items() if key in known}
        arguments = inherited | arguments
    return network, arguments


def _student_paths(
    config: Config, network: str, arguments: dict[str, Any], num_classes: int
) -> dict[str, str]:
    """Give each tap's place in the student, in the order of the config."""
    for tap in config.taps or ():
        if tap in RESERVED or hasattr(nn.ModuleDict, tap):
            raise InputError(f"taps.{tap}: a tap cannot have this name; give another")
    if network in FAMILIES:
        return _family_paths(config, network, find_family(network, arguments))
    try:
        can = working_taps(build_network(network, arguments, num_classes))
    except InputError as error:
        raise InputError(f"student.network: {error}") from None
    if not config.taps:
        raise InputError(
            f"taps: name them; the student {network!r} can be cut at: {', '.join(can[:MAX_LISTED])}"
            + (f" and {len(can) - MAX_LISTED} more" if len(can) > MAX_LISTED else "")
        )
    places = {tap: _place(config, tap, network) for tap in config.taps}
    missing = [tap for tap, place in places.items() if place is None]
    if missing:
        raise InputError(
            f"taps.{missing[0]}.{STUDENT}: is missing; no teacher is a {network!r}: name the student's path"
        )
    return {tap: place for tap, place in places.items() if place is not None}


def _family_paths(config: Config, network: str, family: Family) -> dict[str, str]:
    layers = {layer.name: layer.teacher_path for layer in family[:-1]}
    if config.taps is None:
        return {name: name for name in layers}
    by_path, found = {path: name for name, path in layers.items()}, {}
    for tap, path in config.taps.items():
        named = isinstance(path, dict) and STUDENT in path
        place = tap if tap in layers and not named else _place(config, tap, network) or ""
        found[tap] = by_path.get(place, place)
    unknown = {tap: place for tap, place in found.items() if place not in layers or tap == SCORES}
    if unknown or len(set(found.values())) < len(found) or not found:
        raise InputError(
            f"taps: {unknown or found} must name layers of the student {network!r}, none twice: by the "
            f"tap's name, or as taps.{next(iter(unknown), 'TAP')}.{STUDENT}; there are {list(layers)}"
        )
    return found


def _place(config: Config, tap: str, network: str) -> str | None:
    """Find where a tap is in the student: as given, or as in the first teacher of the same network."""
    assert config.taps is not None
    path = config.taps[tap]
    twin = next((teacher.name for teacher in config.teachers if teacher.network == network), None)
    if isinstance(path, str):
        return path if twin is not None else None
    return path.get(STUDENT, path[twin] if twin is not None else None)


def _teacher_paths(
    config: Config, student_paths: Mapping[str, str], network: str, arguments: dict[str, Any]
) -> dict[str, dict[str, str]]:
    names = [teacher.name for teacher in config.teachers]
    if config.taps is None:
        others = [t.name for t in config.teachers if t.network != network]
        if others:
            raise InputError(
                f"taps: name them; teachers {others} are not of the student's family {network!r}"
            )
        layers = {layer.name: layer.teacher_path for layer in find_family(network, arguments)}
        return {name: {tap: layers[tap] for tap in student_paths} for name in names}
    return {
        name: {tap: path if isinstance(path, str) else path[name] for tap, path in config.taps.items()}
        for name in names
    }


def _family_widths(
    config: Config,
    paths: Mapping[str, str],
    network: str,
    arguments: dict[str, Any],
    by_teacher: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> dict[str, int]:
    """Give the codes' widths of a family's student; a network that is no family has its own."""
    given = config.codes.widths
    if isinstance(given, dict) and (unknown := sorted(set(given) - set(paths))):
        raise InputError(f"codes.widths: {unknown} are no taps; there are {list(paths)}")
    if network not in FAMILIES:
        if isinstance(given, EnergyWidths):
            raise InputError(
                f"codes.widths.energy: the student {network!r} has widths of its own; only a student of a "
                f"family ({', '.join(FAMILIES)}) can be given others"
            )
        return {}
    own = {layer.name: layer.width for layer in find_family(network, arguments)}
    if isinstance(given, LikeTeacher):
        return {tap: by_teacher[given.like][tap][0] for tap in paths}
    explicit = given if isinstance(given, dict) else {}
    return {tap: own[place] for tap, place in paths.items()} | explicit


def _check_widths(
    config: Config,
    widths: Mapping[str, int],
    channels: Mapping[str, tuple[int, ...]],
    by_teacher: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> None:
    given = config.codes.widths
    if isinstance(given, LikeTeacher):
        given = {tap: by_teacher[given.like][tap][0] for tap in widths}
    for tap, width in widths.items():
        if isinstance(given, dict) and given.get(tap, width) != width:
            raise InputError(
                f"codes.widths.{tap}: {given[tap]}, but the student has {width} channels there; only a "
                f"student of a family ({', '.join(FAMILIES)}) can be given other widths"
            )
        most = METHODS[config.codes.method].spans(channels[tap])[0]
        if not 1 <= width <= most:
            raise InputError(
                f"codes.widths.{tap}: {width} must lie in 1 ... {most}, the stacked channels of "
                f"{'the first two' if config.codes.method == 'incremental' else 'all'} teachers there"
            )
