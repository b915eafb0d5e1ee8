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
"""The prefix of a tap's name in a point."""

Point = Mapping[str, float | int]
"""One student to try: ``width.TAP`` for every tap or layer, and possibly ``ridge`` and ``learning_rate``."""


def build_search_space(
    config: TuneConfig,
    own_widths: Mapping[str, int],
    max_widths: Mapping[str, int],
    min_widths: Mapping[str, int] | None = None,
) -> dict[str, tuple[float | int, ...]]:
    """List the values that may be tried for every key of a point.

    Args:
        config: The ``tune`` section of the config.
        own_widths: Tap, or path of a layer -> the width of the student as configured.
        max_widths: Tap -> the largest width that a code can have there.
        min_widths: Tap -> the smallest width; None: 1 everywhere.

    Returns:
        Key of a :data:`Point` -> its values.

    Raises:
        InputError: A width is given for an unknown tap, or is not possible.

    Example:
        >>> build_search_space(TuneConfig(factors=(0.5, 1, 4)), {"conv1": 8}, {"conv1": 16})
        {'width.conv1': (4, 8, 16)}
    """
    unknown = sorted(set(config.widths) - set(own_widths))
    if unknown:
        raise InputError(f"tune.widths: {unknown} have no width to try; there are {list(own_widths)}")
    space: dict[str, tuple[float | int, ...]] = {}
    for tap, own_width in own_widths.items():
        limits = (min_widths or {}).get(tap, 1), max_widths[tap]
        space[WIDTH + tap] = _list_widths(config, tap, own_width, *limits)
    if config.ridges:
        space["ridge"] = config.ridges
    if config.learning_rates:
        space["learning_rate"] = config.learning_rates
    return space


def _list_widths(
    config: TuneConfig, tap: str, own_width: int, min_width: int, max_width: int
) -> tuple[int, ...]:
    """Return the widths to try at a tap or layer: those that are given, or multiples of its own."""
    given = config.widths.get(tap, ())
    if outside := [width for width in given if not min_width <= width <= max_width]:
        raise InputError(
            f"tune.widths.{tap}: {outside} must lie in {min_width} ... {max_width}, the stacked channels"
        )
    widths = given or [max(min_width, round(factor * own_width)) for factor in config.factors]
    return tuple(sorted({min(width, max_width) for width in widths}))


def list_points(
    config: TuneConfig,
    space: Mapping[str, Sequence[float | int]],
    own_widths: Mapping[str, int],
    seed: int,
    scaled: bool = False,
) -> list[Point]:
    """Choose the points of a random or grid search.

    The same seed gives the same points, and more trials only add points, so that a longer search continues a
    shorter one. A random search begins with the student as configured, if the space contains it, and with
    students all of whose widths have one factor, if asked for.

    Args:
        config: The ``tune`` section of the config.
        space: Key of a point -> its values.
        own_widths: Tap -> the width of the student as configured.
        seed: The seed of the random choice.
        scaled: Whether a random search first tries each factor for all widths together.

    Raises:
        InputError: A grid has more points than ``tune.trials``.
    """
    total = math.prod(len(values) for values in space.values())
    if config.algorithm == "grid":
        if total > config.trials:
            sizes = " x ".join(str(len(values)) for values in space.values())
            raise InputError(
                f"tune.trials: the grid has {sizes} = {total} students, more than {config.trials}; "
                "raise it, or give fewer values"
            )
        return [dict(zip(space, values, strict=True)) for values in product(*space.values())]
    rng, chosen = random.Random(seed), dict[int, None]()  # a dict keeps the order of the choice
    while len(chosen) < min(total, config.trials):
        chosen[rng.randrange(total)] = None
    points = [_point(space, number) for number in chosen]
    first = _configured_point(space, own_widths)
    begin = [] if first is None else [first]
    begin += [_scaled_point(space, own_widths, factor) for factor in config.factors] if scaled else []
    return list({trial_key(point): point for point in [*begin, *points]}.values())[: config.trials]


def _scaled_point(
    space: Mapping[str, Sequence[float | int]], own_widths: Mapping[str, int], factor: float
) -> Point:
    """Return the point whose widths are nearest to a multiple of the student's own.

    The first value stands for every other key.
    """
    own = {WIDTH + name: width for name, width in own_widths.items()}
    return {
        key: min(values, key=lambda value: abs(value - factor * own[key])) if key in own else values[0]
        for key, values in space.items()
    }


def _configured_point(
    space: Mapping[str, Sequence[float | int]], own_widths: Mapping[str, int]
) -> Point | None:
    """Return the point with the student's own widths and the first value of every other key.

    None if the space does not contain these widths.
    """
    widths = {key: own_widths[key.removeprefix(WIDTH)] for key in space if key.startswith(WIDTH)}
    if any(width not in space[key] for key, width in widths.items()):
        return None
    return widths | {key: values[0] for key, values in space.items() if key not in widths}


def _point(space: Mapping[str, Sequence[float | int]], number: int) -> Point:
    """Return the point with a number: its digits in a mixed radix, one digit per key, choose the values."""
    point = {}
    for key, values in space.items():
        number, digit = divmod(number, len(values))
        point[key] = values[digit]
    return point


def widths_of_point(point: Point) -> dict[str, int]:
    """Return the widths of a point: tap -> channels."""
    return {key.removeprefix(WIDTH): int(value) for key, value in point.items() if key.startswith(WIDTH)}


def trial_key(point: Point) -> str:
    """Return the name of a point's trial; the same point has the same name in every attempt.

    Example:
        >>> trial_key({"width.conv1": 8, "width.conv2": 16, "ridge": 1e-4})
        '8-16-ridge0.0001-38704d493488'
    """
    widths = "-".join(str(width) for width in widths_of_point(point).values())
    others = "".join(f"-{name}{value:g}" for name, value in point.items() if not name.startswith(WIDTH))
    # The digest keeps names unique where the readable part is cut off or rounded.
    digest = hashlib.sha256(json.dumps(dict(point), sort_keys=True).encode()).hexdigest()
    return f"{widths[:60]}{others}-{digest[:12]}"
