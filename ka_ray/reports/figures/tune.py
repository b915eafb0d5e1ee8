"""The figure of `ka-ray tune`: every student that was tried, and the Pareto front."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.reports.figures.drawing import STUDENT, TEACHER, make_figure, save, shorten

NAMES = {"parameters": "parameters", "macs": "multiply-accumulates of an image"}


def draw_tune_result(sweep: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw agreement over cost: a dot a trial, the front as a line, a star for the choice.

    Args:
        sweep: A :class:`ka_ray.reports.tune.TuneResult`, dumped.
        folder: Where the PNG goes.
    """
    cost, trials = sweep["cost"], {trial["key"]: trial for trial in sweep["trials"]}
    figure, axes = make_figure(8.5, 4.6)
    axes.plot(*_places(trials.values(), cost), "o", color="0.65", markersize=5, label="tried")
    front = [trials[key] for key in sweep["front"]]
    axes.plot(
        *_places(front, cost),
        "o-",
        color=STUDENT,
        markersize=6,
        drawstyle="steps-post",
        label="Pareto front",
    )
    if sweep["chosen"] is not None:
        place = _places([trials[sweep["chosen"]]], cost)
        axes.plot(*place, "*", color=TEACHER, markersize=16, markeredgecolor="black", label="chosen")
    axes.axvline(sweep["budget"], color="0.4", linestyle="--", linewidth=1.2, label="budget")
    axes.set_xlabel(NAMES[cost])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylabel("agreement with the ensemble")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9)
    figure.suptitle(f"{shorten(sweep['name'], 40)}: {len(trials)} students tried")
    return save(figure, folder, "tune")


def _places(trials: Any, cost: str) -> tuple[list[float], list[float]]:
    listed = list(trials)
    return [trial[cost] for trial in listed], [trial["agreement"] for trial in listed]
