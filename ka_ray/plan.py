"""What will be built, worked out before the first image is read: taps, shapes, widths, the student.

Shapes: S stacked channels of a tap, C code channels, *space height and width.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ka_ray.amalgamation.scores import LabelSets
from ka_ray.config import Config
from ka_ray.config.schema import LikeTeacher
from ka_ray.errors import InputError
from ka_ray.features.taps import Taps
from ka_ray.student.families import FAMILIES, Family, find_family
from ka_ray.student.network import SCORES, Student, StudentSpec
from ka_ray.teachers import Teacher

FLOAT16_BYTES = 2


@dataclass(frozen=True)
class Plan:
    """The checked plan of a run.

    Attributes:
        label_sets: The teachers' classes and their union.
        paths: teacher -> tap -> module path.
        shapes: tap -> shape of the stacked features of one image, ``(S, *space)``.
        spec: The student.
    """

    label_sets: LabelSets
    paths: Mapping[str, Mapping[str, str]]
    shapes: Mapping[str, tuple[int, ...]]
    spec: StudentSpec

    @property
    def feature_bytes(self) -> int:
        """Bytes that the stacked features of one image take on disk."""
        return FLOAT16_BYTES * sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def image_bytes(self) -> int:
        """Bytes that one image and its scores take on disk."""
        return 3 * self.spec.image_size**2 + FLOAT16_BYTES * len(self.spec.classes)


def make_plan(config: Config, teachers: Sequence[Teacher]) -> Plan:
    """Check teachers, taps and student against one another.

    Raises:
        InputError: A tap does not exist, the teachers' sizes differ at a tap, a code is wider than its
            stacked features, or the student's size differs from the teachers'.
    """
    label_sets = LabelSets({teacher.name: teacher.classes for teacher in teachers})
    network, arguments = _student_network(config)
    family = find_family(network, arguments)
    paths = _tap_paths(config, family, network)
    found = {t.name: t.check(config.images.size, paths[t.name]) for t in teachers}
    taps = [layer.name for layer in family if layer.name in paths[teachers[0].name]]
    shapes = {tap: _stacked_shape(tap, {name: shapes[tap] for name, shapes in found.items()}) for tap in taps}
    preprocessing = config.student.preprocessing or config.teachers[0].preprocessing
    spec = StudentSpec(
        network=network,
        arguments=arguments,
        widths=_widths(config, taps, shapes, found),
        label_sets=dict(label_sets.by_teacher),
        image_size=config.images.size,
        resize=config.images.resize,
        preprocessing=preprocessing.model_dump(mode="json"),
    )
    _check_student(spec, shapes)
    return Plan(label_sets, paths, shapes, spec)


def _student_network(config: Config) -> tuple[str, dict[str, Any]]:
    first = config.teachers[0]
    network = config.student.network or first.network
    if network not in FAMILIES:
        raise InputError(
            f"student.network: {network!r} is no family; set student.network to one of {', '.join(FAMILIES)}"
        )
    arguments = dict(config.student.arguments)
    if network == first.network:
        known = inspect.signature(FAMILIES[network]).parameters
        arguments = {k: v for k, v in first.arguments.items() if k in known} | arguments
    return network, arguments


def _tap_paths(config: Config, family: Family, network: str) -> dict[str, dict[str, str]]:
    layers = {layer.name: layer for layer in family if layer.name != SCORES}
    names = [teacher.name for teacher in config.teachers]
    if config.taps is None:
        others = [t.name for t in config.teachers if t.network != network]
        if others:
            raise InputError(
                f"taps: name them; teachers {others} are not of the student's family {network!r}"
            )
        return {name: {tap: layer.teacher_path for tap, layer in layers.items()} for name in names}
    unknown = sorted(set(config.taps) - set(layers))
    if unknown or not config.taps:
        raise InputError(
            f"taps: {unknown} name no layers of the student {network!r}; there are {list(layers)}"
        )
    return {
        name: {tap: path if isinstance(path, str) else path[name] for tap, path in config.taps.items()}
        for name in names
    }


def _stacked_shape(tap: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    spaces = {shape[1:] for shape in shapes.values()}
    if len(spaces) > 1:
        raise InputError(
            f"taps.{tap}: features of different height and width cannot be stacked: {dict(shapes)}"
        )
    return (sum(shape[0] for shape in shapes.values()), *spaces.pop())


def _widths(
    config: Config,
    taps: Sequence[str],
    stacked: Mapping[str, tuple[int, ...]],
    by_teacher: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> dict[str, int]:
    given = config.codes.widths
    like = given.like if isinstance(given, LikeTeacher) else config.teachers[0].name
    widths = {tap: by_teacher[like][tap][0] for tap in taps}
    if isinstance(given, dict):
        unknown = sorted(set(given) - set(taps))
        if unknown:
            raise InputError(f"codes.widths: {unknown} are no taps; there are {list(taps)}")
        widths |= given
    for tap, width in widths.items():
        if not 1 <= width <= stacked[tap][0]:
            raise InputError(
                f"codes.widths.{tap}: {width} must lie in 1 ... {stacked[tap][0]} (stacked channels)"
            )
    return widths


@torch.inference_mode()
def _check_student(spec: StudentSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    student = Student(spec).eval()
    image = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    try:
        with Taps(student, {tap: f"stages.{tap}" for tap in spec.taps}) as taps:
            student(image)
    except RuntimeError as error:
        raise InputError(
            f"student {spec.network!r}: an image of {spec.image_size} pixels fails: {error}"
        ) from None
    for tap, features in taps.features.items():
        if features.shape[2:] != shapes[tap][1:]:
            raise InputError(
                f"taps.{tap}: the student's features are {tuple(features.shape[2:])} high and wide, "
                f"the teachers' {shapes[tap][1:]}; check student.preprocessing.size and the taps' paths"
            )
