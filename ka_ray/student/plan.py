"""Plan what a run builds before the first image is read: taps, feature shapes, code widths and the student.

Shapes: S stacked channels of a tap, C code channels, *space height and width.
"""

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ka_ray.amalgamation import METHODS, LabelSets
from ka_ray.amalgamation.gated_scores import gated_label_sets
from ka_ray.config import Config, EnergyWidths, LikeTeacher, Preprocessing
from ka_ray.errors import InputError
from ka_ray.features.resize import check_resizable
from ka_ray.features.stack import SCORES
from ka_ray.images.views import IMAGE, NetworkViews, View, make_view, view_of
from ka_ray.student import FAMILIES, Student, StudentSpec, find_family
from ka_ray.student.layer_widths import resolve_layer_widths
from ka_ray.student.tap_paths import is_same_network, resolve_student_paths, resolve_teacher_paths
from ka_ray.teachers import Teacher

FLOAT16_BYTES, FLOAT32_BYTES = 2, 4


@dataclass(frozen=True)
class Plan:
    """The checked plan of a run.

    Attributes:
        label_sets: The teachers' label sets and the rule that combines their scores.
        paths: teacher -> tap -> module path in the teacher, with the layout of its output: ``blocks.5:cls``.
        channels: tap -> number of channels of each teacher's features there, in the order of the teachers.
        spaces: tap -> height and width of the student's features there, empty for a vector. All teachers'
            features are resized to it.
        spec: The student.
        kept_adapters: tap -> number of parameters of the 1x1 conv that the student keeps there, because no
            adapter can be folded there; other taps are left out.
        views: The pixels that the student and each teacher get of an image.
        has_layer_norms: Whether the student's network has layer norms, as transformers have.
    """

    label_sets: LabelSets
    paths: Mapping[str, Mapping[str, str]]
    channels: Mapping[str, tuple[int, ...]]
    spaces: Mapping[str, tuple[int, ...]]
    spec: StudentSpec
    kept_adapters: Mapping[str, int]
    views: NetworkViews
    has_layer_norms: bool

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """tap -> shape of one image's stacked features, ``(S, *space)``."""
        return {tap: (sum(channels), *self.spaces[tap]) for tap, channels in self.channels.items()}

    def code_shapes(self) -> dict[str, dict[str, Any]]:
        """Return tap -> everything that its auto-encoders depend on, in types that JSON keeps unchanged."""
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
        """Bytes on disk of one image's stacked features."""
        return FLOAT16_BYTES * sum(math.prod(shape) for shape in self.shapes.values())

    def image_bytes(self, columns: Sequence[str] = ()) -> int:
        """Return the bytes on disk of one image, decoded, and all teachers' scores for it.

        Args:
            columns: Columns of teachers' images that are stored besides the student's.
        """
        pixels = sum(math.prod(self.views.columns[name].shape) for name in (IMAGE, *columns))
        return pixels + FLOAT16_BYTES * self.label_sets.num_scores


def make_plan(config: Config, teachers: Sequence[Teacher]) -> Plan:
    """Plan a run, and check that its teachers, taps and student fit together.

    Args:
        config: Config of the run.
        teachers: The teachers of the config, in its order. Without ``student.widths`` in the config, they are
            asked for one after the other, and not kept.

    Raises:
        InputError: A tap does not exist, the student cannot be cut at a tap, features cannot be resized to
            the student's, a code is wider than its stacked features, or the rule does not fit the label sets.
    """
    label_sets, names = _match_label_sets(config), [t.name for t in config.teachers]
    network, arguments = _student_network(config)
    student_paths = resolve_student_paths(config, network, arguments, len(label_sets.classes))
    paths = resolve_teacher_paths(config, student_paths, network, arguments)
    views = _make_views(config)
    paths, found = _probe_all(teachers, names, views, paths)
    spec = StudentSpec(
        network=network,
        arguments=arguments,
        paths=student_paths,
        widths=_family_widths(config, student_paths, network, arguments, found),
        label_sets=dict(label_sets.by_teacher),
        rule=label_sets.rule,
        center=label_sets.center,
        preprocessing=_student_preprocessing(config).model_dump(mode="json"),
        decoding=config.images.decoding.model_dump(mode="json"),
    )
    spec = replace(spec, layer_widths=resolve_layer_widths(spec, config.student.widths, teachers))
    student = Student(spec)  # it only shows its modules, the order of the taps and the shapes there
    taps = [tap for tap in student.stages if tap != SCORES]
    channels = {tap: tuple(found[name][tap][0] for name in names) for tap in taps}
    spaces = {tap: student.shapes[tap][1:] for tap in taps}
    widths = {tap: student.shapes[tap][0] for tap in taps}
    _check_taps(config, spaces, widths, channels, found)
    spec = replace(spec, paths={tap: student.paths[tap] for tap in taps}, widths=widths)
    norms = any(isinstance(module, nn.LayerNorm) for module in student.modules())
    return Plan(label_sets, paths, channels, spaces, spec, student.kept_adapters, views, norms)


def _probe_all(
    teachers: Sequence[Teacher],
    names: Sequence[str],
    views: NetworkViews,
    paths: Mapping[str, Mapping[str, str]],
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, tuple[int, ...]]]]:
    """Return, per teacher, the taps with their layouts, and the shapes of the features there."""
    resolved, found = dict[str, dict[str, str]](), dict[str, dict[str, tuple[int, ...]]]()
    for number, name in enumerate(names):
        # Not in a variable: a teacher that is loaded on demand is freed when the function returns.
        resolved[name], found[name] = _probe(teachers[number], views.teachers[name], paths[name])
    return resolved, found


def _probe(
    teacher: Teacher, view: View, paths: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """Return the taps of a teacher with their layouts, and the shapes of the features there."""
    resolved = teacher.resolve_paths(view, paths)
    return resolved, teacher.check_forward_pass(view, resolved)


def _match_label_sets(config: Config) -> LabelSets:
    scores = config.scores
    label_sets = LabelSets({t.name: t.classes for t in config.teachers}, scores.rule, scores.center)
    return gated_label_sets(label_sets) if scores.gated else label_sets


def _student_preprocessing(config: Config) -> Preprocessing:
    """Return the student's preprocessing with everything set; by default it is that of the first teacher."""
    preprocessing = config.student.preprocessing or config.teachers[0].preprocessing
    return preprocessing.resolve(config.images.size, config.images.resize)


def _make_views(config: Config) -> NetworkViews:
    teachers = {t.name: make_view(t.preprocessing, config.images) for t in config.teachers}
    section = config.scores.descriptive
    descriptive = None if section is None else make_view(section.preprocessing, config.images)
    return NetworkViews(view_of(_student_preprocessing(config)), teachers, descriptive)


def _student_network(config: Config) -> tuple[str, dict[str, Any]]:
    """Return the student's network and its arguments; both default to those of the first teacher."""
    first = config.teachers[0]
    network = config.student.network or first.network
    arguments = dict(config.student.arguments)
    if is_same_network(first, network, arguments):  # another would not know the first teacher's arguments
        inherited = dict(first.arguments)
        if network in FAMILIES:
            # A family leaves out some arguments of the network that it is named after.
            known = inspect.signature(FAMILIES[network]).parameters
            inherited = {key: value for key, value in inherited.items() if key in known}
        arguments = inherited | arguments
    return network, arguments


def _family_widths(
    config: Config,
    paths: Mapping[str, str],
    network: str,
    arguments: dict[str, Any],
    by_teacher: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> dict[str, int]:
    """Return tap -> width of the code, for a student of a family; {} for other networks, of fixed widths.

    A family (:data:`ka_ray.student.families.FAMILIES`) is a network that can be built with any widths.
    """
    given = config.codes.widths
    if isinstance(given, dict) and (unknown := sorted(set(given) - set(paths))):
        raise InputError(f"codes.widths: {unknown} are not taps; the taps are {list(paths)}")
    if network not in FAMILIES or config.student.widths is not None:
        if isinstance(given, EnergyWidths):
            raise InputError(
                f"codes.widths.energy: codes are as wide as the layers of the student {network!r}; set "
                "student.widths instead"
            )
        return {}
    family_widths = {layer.name: layer.width for layer in find_family(network, arguments)}
    if isinstance(given, LikeTeacher):
        return {tap: by_teacher[given.like][tap][0] for tap in paths}
    # With `codes.widths.energy` the family's widths are a placeholder until the variance is measured.
    explicit = given if isinstance(given, dict) else {}
    return {tap: family_widths[layer] for tap, layer in paths.items()} | explicit


def _check_taps(
    config: Config,
    spaces: Mapping[str, tuple[int, ...]],
    widths: Mapping[str, int],
    channels: Mapping[str, tuple[int, ...]],
    by_teacher: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> None:
    """Check that features can be resized, the widths are those of the student, and no code is too wide.

    Raises:
        InputError: Features cannot be resized to the student's, or a width differs from the student's or
            exceeds the number of channels that the first auto-encoder takes in.
    """
    for tap, (name, shapes) in itertools.product(spaces, by_teacher.items()):
        check_resizable(tap, name, shapes[tap], spaces[tap])
    given = config.codes.widths
    # A student whose widths are fixed may have other widths than the named teacher.
    if isinstance(given, LikeTeacher):
        given = {tap: by_teacher[given.like][tap][0] for tap in widths}
    for tap, width in widths.items():
        if isinstance(given, dict) and given.get(tap, width) != width:
            raise InputError(
                f"codes.widths.{tap}: {given[tap]}, but the student has {width} channels there; it changes "
                f"students of a family ({', '.join(FAMILIES)}), student.widths those of any network"
            )
        # A code cannot be wider than the input of its auto-encoder. In a chain of them, the first one has the
        # narrowest input.
        max_width = METHODS[config.codes.method].spans(channels[tap])[0]
        if not 1 <= width <= max_width:
            joined = "the first two" if config.codes.method == "incremental" else "all"
            raise InputError(
                f"codes.widths.{tap}: {width} must lie in 1 ... {max_width}, the number of stacked channels "
                f"of {joined} teachers there"
            )
