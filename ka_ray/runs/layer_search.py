"""A search for the widths of any network's layers: what it may try, and what its trials need.

Its students are solved layer by layer from their teachers' features, as by ``student.start: exact``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ka_ray.config import Config, EnergyWidths, TuneConfig, with_overrides
from ka_ray.errors import InputError
from ka_ray.runs.search_space import Point, build_search_space, list_points
from ka_ray.runs.setup import describe_teachers
from ka_ray.student import FAMILIES
from ka_ray.student.layer_widths import stacked_widths
from ka_ray.student.plan import Plan
from ka_ray.student.resized import WidthGroup
from ka_ray.teachers import build_teacher


@dataclass(frozen=True)
class SearchSpace:
    """What a search tries.

    Attributes:
        space: Key of a point -> its values.
        points: The points to try; None lets Optuna propose them one by one.
    """

    space: Mapping[str, tuple[float | int, ...]]
    points: list[Point] | None


def prepare_layer_search(config: Config) -> Config | None:
    """Return the config of a search over the layers of any network; None if the search is over taps.

    A search is over taps, and faster, if the student is of a family and the config asks neither for
    ``student.widths`` nor for ``student.start: exact``.

    Args:
        config: The config of the search.

    Raises:
        InputError: The config asks for something that such a search does not do.
    """
    described, _ = describe_teachers(config)
    network, student = config.student.network or described.teachers[0].network, config.student
    if network in FAMILIES and student.widths is None and student.start != "exact":
        return None
    if isinstance(student.widths, EnergyWidths):
        raise InputError(
            "student.widths.energy: a search starts from widths; give a number, or channels by layer"
        )
    if student.start not in ("exact", "auto") and "start" in student.model_fields_set:
        raise InputError("student.start: a search solves its students; set it to exact")
    if config.tune.ridges:
        raise InputError(
            "tune.ridges: students of this network choose the ridge of each layer themselves; leave it empty"
        )
    widths = [] if student.widths is not None else ["student.widths=1.0"]
    return with_overrides(config, ["student.start=exact", *widths])


def list_layer_widths(config: Config, plan: Plan) -> SearchSpace:
    """List the widths to try.

    Args:
        config: The config of the search.
        plan: The plan of the search; its student is the one as configured.

    Raises:
        InputError: ``tune.widths`` names no layer whose width can be changed, or a width is not possible.
    """
    groups, own = plan.spec.width_groups, dict(plan.spec.layer_widths)
    teachers = [build_teacher(teacher).network for teacher in config.teachers]
    section = config.tune.model_copy(update={"widths": _by_group(config.tune, groups)})
    min_widths = {group.name: group.min_width for group in groups}
    space = build_search_space(section, own, stacked_widths(groups, teachers), min_widths)
    if section.algorithm == "optuna":
        return SearchSpace(space, None)
    return SearchSpace(space, list_points(section, space, own, config.seed, scaled=True))


def _by_group(config: TuneConfig, groups: tuple[WidthGroup, ...]) -> dict[str, tuple[int, ...]]:
    """Return the widths to try by the name of each group; unknown paths are kept, to be refused."""
    names, found = {path: group.name for group in groups for path in group.paths}, dict[str, str]()
    for path in config.widths:
        first = found.setdefault(names.get(path, path), path)
        if first != path:
            raise InputError(f"tune.widths: {first} and {path} have the same channels; name one of them")
    return {name: config.widths[path] for name, path in found.items()}
