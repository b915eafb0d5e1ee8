"""The figures of how a run learned, over the images that it saw."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ka_ray.reports.figures.drawing import STUDENT, colours, make_figure, save, shorten, zoom

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENSEMBLE_LINE = "0.35"
"""A grey: the ensemble does not learn."""


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> list[Path]:
    """Draw how the losses fell, one panel a stage, over the images seen."""
    stages = {stage: history for stage, history in histories.items() if history}
    if not stages:
        return []
    heights = [max(2.4, 0.6 + 0.2 * min(len(history[0]["losses"]), 16)) for history in stages.values()]
    figure, _ = make_figure(8.5, 0.5 + sum(heights), panels=heights)
    for axes, (stage, history) in zip(figure.axes, stages.items(), strict=True):
        _loss_panel(axes, stage, history)
    figure.axes[-1].set_xlabel("images seen")
    figure.suptitle("Loss, mean of each epoch")
    return save(figure, folder, "losses")


def _loss_panel(axes: "Axes", stage: str, history: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in history for name in record["losses"]))
    images = [record["images"] for record in history]
    for name, colour in zip(names, colours(len(names)), strict=True):
        losses = [record["losses"].get(name, math.nan) for record in history]
        shown = [loss if loss > 0 and math.isfinite(loss) else math.nan for loss in losses]
        axes.plot(images, shown, "o-", color=colour, label=shorten(name), markersize=3.5, linewidth=1.5)
    axes.set_yscale("log")
    _images_axis(axes)
    axes.set_ylabel("loss")
    axes.set_title(stage, loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    columns = 1 + (len(names) - 1) // 16
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), ncols=columns, fontsize=8, frameon=False)


def epoch_curve(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the student's accuracy over joint learning; without labels its agreement with the ensemble.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped; its ``curve`` is drawn.
        folder: Where the PNG goes.
    """
    curve = report.get("curve", [])
    key = "union" if any(point["accuracy"]["union"] is not None for point in curve) else "agreement"
    points = [point for point in curve if point["accuracy"][key] is not None]
    if not points:
        return []
    values = [point["accuracy"][key] for point in points]
    ensembles = _ensembles(points[-1]["accuracy"]) if key == "union" else {}
    figure, axes = make_figure(8, 4.2)
    axes.plot([point["images"] for point in points], values, "o-", color=STUDENT, label="student")
    for (label, value), style in zip(ensembles.items(), ("-", "--"), strict=False):
        axes.axhline(value, color=ENSEMBLE_LINE, linestyle=style, label=f"{label}: {value:.3f}", zorder=1)
    _mark_last(axes, points[-1], key)
    _images_axis(axes)
    axes.set_ylim(*zoom([*values, *ensembles.values()]))
    axes.grid(alpha=0.3)
    axes.set_xlabel("images of joint learning")
    axes.set_ylabel("accuracy, all classes" if key == "union" else "agreement with the ensemble")
    if ensembles:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.suptitle("The student in the course of joint learning")
    return save(figure, folder, "epoch_curve")


def _ensembles(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Find what the student is held against: label -> accuracy, of one view before that over views."""
    found = {"ensemble": accuracy["ensemble"], "ensemble over views": accuracy.get("ensemble_over_views")}
    return {label: value for label, value in found.items() if value is not None}


def _mark_last(axes: "Axes", point: Mapping[str, Any], key: str) -> None:
    """Write the last point's number at the right edge, and what share of the ensemble's accuracy that is."""
    value, ensemble = point["accuracy"][key], point["accuracy"]["ensemble"]
    share = f"\n{value / ensemble:.1%} of\nensemble" if key == "union" and ensemble else ""
    edge: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    axes.annotate(f"{value:.3f}{share}", (1, value), (5, 0), va="center", color=STUDENT, fontsize=9, **edge)


def _images_axis(axes: "Axes") -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
