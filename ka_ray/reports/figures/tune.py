"""Draw the figure of `ka-ray tune`: every student that was tried, and the Pareto front."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ka_ray.reports.figures.drawing import (
    STUDENT_COLOUR,
    TEACHER_COLOUR,
    make_figure,
    save_figure,
    shorten,
)

AXIS_LABELS = {"parameters": "parameters", "macs": "multiply-accumulates per image"}
"""Cost -> the label of its axis."""


def draw_tune_result(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``tune.png``: agreement over cost, with the front as a line and the chosen student as a star.

    Args:
        result: A :class:`ka_ray.reports.tune.TuneResult` as a dict (``model_dump``).
        folder: Folder to write the file to.

    Returns:
        The path of the file.
    """
    cost, trials = result["cost"], {trial["key"]: trial for trial in result["trials"]}
    figure, axes = make_figure(8.5, 4.6)
    axes.plot(*_coordinates(trials.values(), cost), "o", color="0.65", markersize=5, label="tried")
    front = _coordinates([trials[key] for key in result["front"]], cost)
    # The line is drawn as steps: for a cost between two students of the front, the best student that was
    # tried is the cheaper of the two.
    steps: dict[str, Any] = {"drawstyle": "steps-post", "markersize": 6}
    axes.plot(*front, "o-", color=STUDENT_COLOUR, label="Pareto front", **steps)
    if result["chosen"] is not None:
        star: dict[str, Any] = {"color": TEACHER_COLOUR, "markersize": 16, "markeredgecolor": "black"}
        point = _coordinates([trials[result["chosen"]]], cost)
        axes.plot(*point, "*", label="chosen (best within the budget)", **star)
    # Students to the right of this line cost too much to be chosen.
    axes.axvline(result["budget"], color="0.4", linestyle="--", linewidth=1.2, label="budget")
    axes.set_xlabel(AXIS_LABELS[cost])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("agreement with the ensemble, held-out images")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9)
    figure.suptitle(f"{shorten(result['name'], 40)}: {len(trials)} students tried")
    return save_figure(figure, folder, "tune")


def _coordinates(trials: Iterable[Mapping[str, Any]], cost: str) -> tuple[list[float], list[float]]:
    trials = list(trials)
    return [trial[cost] for trial in trials], [trial["agreement"] for trial in trials]
