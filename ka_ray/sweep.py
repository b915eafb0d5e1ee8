"""What a search tries and what it finds: points, trials, the Pareto front. No torch, no Ray."""

import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ka_ray.config import TuneConfig
from ka_ray.errors import InputError
from ka_ray.features.store import write_json
from ka_ray.files import write_text
from ka_ray.markdown import table

WIDTH = "width."
"""Before a tap's name, in a point."""

Point = Mapping[str, float | int]
"""One student to try: ``width.TAP`` of every tap, and maybe ``ridge`` and ``learning_rate``."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Part):
    """One student that was tried.

    ``agreement`` with the ensemble on held-out images; ``seconds`` that it took; ``epochs`` of joint
    learning; ``stopped`` before its last one, because others were better by then.
    """

    key: str
    widths: dict[str, int]
    ridge: float | None
    learning_rate: float | None
    agreement: float
    parameters: int
    macs: int
    seconds: float
    epochs: int
    stopped: bool = False


class Sweep(_Part):
    """All trials of a search.

    ``front`` are the keys of the trials of which no other has more agreement at the same or a smaller cost;
    ``chosen`` is that of the front with the most agreement within the budget.
    """

    name: str
    cost: str
    budget: int
    images: int
    pass_seconds: float
    search_seconds: float
    failed: dict[str, str]
    trials: list[Trial]
    front: list[str]
    chosen: str | None

    def trial(self, key: str) -> Trial:
        """Find a trial."""
        return next(trial for trial in self.trials if trial.key == key)

    def save(self, folder: Path) -> None:
        """Write ``tune.json`` and ``tune.md`` into a folder."""
        write_json(folder / "tune.json", self.model_dump(mode="json"))
        write_text(folder / "tune.md", self.to_markdown())

    def to_markdown(self) -> str:
        """Write the front, then all trials, for people."""
        ordered = sorted(self.trials, key=lambda trial: (getattr(trial, self.cost), -trial.agreement))
        front = [trial for trial in ordered if trial.key in self.front]
        parts = [
            f"# {self.name}: {len(self.trials)} students tried",
            f"Agreement with the ensemble on {self.images:,} held-out images. The pass over the images took "
            f"{self.pass_seconds:.1f} s, the trials {self.search_seconds:.1f} s.",
            f"## Pareto front: agreement against {self.cost}",
            _rows(front, self.chosen),
            f"Chosen (*): the best within {self.budget:,} {self.cost}. `ka-ray run best.yaml` learns a "
            "student of these widths, with the stages of the config."
            if self.chosen is not None
            else f"No student that was tried costs at most {self.budget:,} {self.cost}.",
            "## All",
            _rows(ordered, self.chosen),
        ]
        if self.failed:
            lines = "\n".join(f"- `{key}`: {error}" for key, error in self.failed.items())
            parts.append(f"## Failed; the same command tries them again\n\n{lines}")
        return "\n\n".join(parts) + "\n"


def _rows(trials: Sequence[Trial], chosen: str | None) -> str:
    header = ("widths", "ridge", "rate", "agreement", "parameters", "million macs", "epochs", "seconds")
    rows = [
        (
            " ".join(map(str, trial.widths.values())) + (" *" if trial.key == chosen else ""),
            "-" if trial.ridge is None else f"{trial.ridge:g}",
            "-" if trial.learning_rate is None else f"{trial.learning_rate:g}",
            f"{trial.agreement:.4f}",
            f"{trial.parameters:,}",
            f"{trial.macs / 1e6:.2f}",
            f"{trial.epochs}{' (stopped)' if trial.stopped else ''}",
            f"{trial.seconds:.1f}",
        )
        for trial in trials
    ]
    return table(header, rows)


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


def pareto_front(trials: Iterable[Trial], cost: str) -> list[Trial]:
    """Find the trials of which no other has at least the agreement at no more cost, and one of both better.

    Returns:
        From the cheapest to the best; of equal ones the first.
    """
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (getattr(one, cost), -one.agreement, one.key)):
        if not front or trial.agreement > front[-1].agreement:
            front.append(trial)
    return front


def choose(front: Sequence[Trial], cost: str, budget: int) -> Trial | None:
    """Choose the trial of the front with the most agreement within a budget; None if all cost more."""
    within: list[Any] = [trial for trial in front if getattr(trial, cost) <= budget]
    return within[-1] if within else None
