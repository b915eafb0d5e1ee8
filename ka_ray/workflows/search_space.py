"""What a search for widths may try: the space, its points, and their names."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from itertools import product

from ka_ray.config import TuneConfig
from ka_ray.errors import InputError

WIDTH = "width."
"""Before a tap's name, in a point."""


Point = Mapping[str, float | int]
"""One student to try: ``width.TAP`` of every tap, and maybe ``ridge`` and ``learning_rate``."""


def space_of(
    config: TuneConfig, own: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, tuple[float | int, ...]]:
    """Lay out what may be tried.

    Args:
        config: The search.
        own: tap -> the student's width as configured.
        most: tap -> the widest that a code can be there.

    Returns:
        key of a :data:`Point` -> its values.

    Raises:
        InputError: A width is named for no tap, or none can be tried at one.

    Example:
        >>> space_of(TuneConfig(factors=(0.5, 1, 4)), {"conv1": 8}, {"conv1": 16})
        {'width.conv1': (4, 8, 16)}
    """
    unknown = sorted(set(config.widths) - set(own))
    if unknown:
        raise InputError(f"tune.widths: {unknown} are no taps; there are {list(own)}")
    space: dict[str, tuple[float | int, ...]] = {}
    for tap, width in own.items():
        tried = config.widths.get(tap) or [max(1, round(factor * width)) for factor in config.factors]
        too_wide = [one for one in config.widths.get(tap, ()) if one > most[tap]]
        if too_wide:
            raise InputError(
                f"tune.widths.{tap}: {too_wide} must lie in 1 ... {most[tap]}, the stacked channels"
            )
        space[WIDTH + tap] = tuple(sorted({min(one, most[tap]) for one in tried}))
    if config.ridges:
        space["ridge"] = config.ridges
    if config.learning_rates:
        space["learning_rate"] = config.learning_rates
    return space


def points_of(
    config: TuneConfig, space: Mapping[str, Sequence[float | int]], own: Mapping[str, int], seed: int
) -> list[Point]:
    """Choose the points of a random or grid search, the same for the same seed; more trials add points.

    A random search begins with the student as configured, where that is in the space.

    Raises:
        InputError: A grid has more points than ``tune.trials``.
    """
    total = math.prod(len(values) for values in space.values())
    if config.algorithm == "grid":
        if total > config.trials:
            sizes = " x ".join(str(len(values)) for values in space.values())
            raise InputError(
                f"tune.trials: the grid has {sizes} = {total} students, more than {config.trials}; "
                "raise it, or name fewer values"
            )
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    draw, chosen = random.Random(seed), dict[int, None]()
    while len(chosen) < min(total, config.trials):
        chosen[draw.randrange(total)] = None
    points = [_point(space, number) for number in chosen]
    first: dict[str, float | int] = {
        key: own[key.removeprefix(WIDTH)] for key in space if key.startswith(WIDTH)
    }
    if all(value in space[key] for key, value in first.items()):
        first |= {key: values[0] for key, values in space.items() if not key.startswith(WIDTH)}
        points = [first, *(point for point in points if point != first)][: config.trials]
    return points


def _point(space: Mapping[str, Sequence[float | int]], number: int) -> Point:
    point = {}
    for key, values in space.items():
        number, place = divmod(number, len(values))
        point[key] = values[place]
    return point


def widths_of(point: Point) -> dict[str, int]:
    """Read a point's widths: tap -> C."""
    return {key.removeprefix(WIDTH): int(value) for key, value in point.items() if key.startswith(WIDTH)}


def key_of(point: Point) -> str:
    """Name a point; the same point has the same name in every attempt.

    Example:
        >>> key_of({"width.conv1": 8, "width.conv2": 16, "ridge": 1e-4})
        '8-16-ridge0.0001-38704d493488'
    """
    widths = "-".join(str(width) for width in widths_of(point).values())
    others = "".join(f"-{name}{value:g}" for name, value in point.items() if not name.startswith(WIDTH))
    digest = hashlib.sha256(json.dumps(dict(point), sort_keys=True).encode()).hexdigest()
    return f"{widths[:60]}{others}-{digest[:12]}"
