"""Draw how losses and accuracy develop over the images that a run processes."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ka_ray.reports.figures.drawing import (
    STUDENT_COLOUR,
    label_log_axis,
    make_figure,
    pick_colours,
    save_figure,
    shorten,
    zoom_limits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENSEMBLE_COLOUR = "0.35"
"""Grey, because the ensemble is a reference that does not learn."""

MAX_LEGEND_ROWS = 16


def draw_loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> list[Path]:
    """Draw ``losses.png``: the training losses over the images processed, one panel per stage.

    Args:
        histories: Stage -> the records of its epochs, each a :class:`ka_ray.training.fit.Progress` as a dict.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if no stage has an epoch.
    """
    stages = {stage: history for stage, history in histories.items() if history}
    if not stages:
        return []
    # A panel is as high as its legend needs, which has a row per loss.
    heights = [
        max(2.4, 0.6 + 0.2 * min(len(history[0]["losses"]), MAX_LEGEND_ROWS)) for history in stages.values()
    ]
    figure, _ = make_figure(8.5, 0.5 + sum(heights), panels=heights)
    for axes, (stage, history) in zip(figure.axes, stages.items(), strict=True):
        _draw_losses(axes, stage, history)
    figure.axes[-1].set_xlabel("images processed")
    figure.suptitle("Training loss, mean over each epoch")
    return save_figure(figure, folder, "losses")


def _draw_losses(axes: "Axes", stage: str, history: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for record in history for name in record["losses"]))
    images = [record["images"] for record in history]
    for name, colour in zip(names, pick_colours(len(names)), strict=True):
        losses = [record["losses"].get(name, math.nan) for record in history]
        # A log axis has no place for zero or infinity: such points are left out.
        shown = [loss if loss > 0 and math.isfinite(loss) else math.nan for loss in losses]
        axes.plot(images, shown, "o-", color=colour, label=shorten(name), markersize=3.5, linewidth=1.5)
    label_log_axis(axes, "loss")
    _format_images_axis(axes)
    axes.set_title(f"stage {stage}", loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    # Beside the panel: a network can have more layers than lines fit into it.
    columns = 1 + (len(names) - 1) // MAX_LEGEND_ROWS
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), ncols=columns, fontsize=8, frameon=False)


def draw_epoch_curve(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``epoch_curve.png``: the student's accuracy during joint learning; without labels, its agreement.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped; its ``curve`` is drawn.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if nothing was measured between the epochs.
    """
    curve = report.get("curve", [])
    key = "union" if any(point["accuracy"]["union"] is not None for point in curve) else "agreement"
    # Not every epoch has to be measured: the line connects those that were.
    points = [point for point in curve if point["accuracy"][key] is not None]
    if not points:
        return []
    values = [point["accuracy"][key] for point in points]
    ensembles = _find_ensembles(points[-1]["accuracy"]) if key == "union" else {}
    figure, axes = make_figure(8, 4.2)
    axes.plot([point["images"] for point in points], values, "o-", color=STUDENT_COLOUR, label="student")
    for (label, value), style in zip(ensembles.items(), ("-", "--"), strict=False):
        label = f"{label}: {value:.3f}"
        axes.axhline(value, color=ENSEMBLE_COLOUR, linestyle=style, label=label, zorder=1)
    _annotate_last_point(axes, points[-1], key)
    _format_images_axis(axes)
    axes.set_ylim(*zoom_limits([*values, *ensembles.values()]))
    axes.grid(alpha=0.3)
    axes.set_xlabel("images processed in joint learning")
    axes.set_ylabel("accuracy on all classes" if key == "union" else "agreement with the ensemble")
    if ensembles:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    figure.suptitle("The student after every epoch of joint learning")
    return save_figure(figure, folder, "epoch_curve")


def _find_ensembles(accuracy: Mapping[str, Any]) -> dict[str, float]:
    """Return label -> accuracy of the ensembles that were measured, first the one without views."""
    ensembles = {
        "ensemble": accuracy["ensemble"],
        "ensemble, averaged over views": accuracy.get("ensemble_over_views"),
    }
    return {label: value for label, value in ensembles.items() if value is not None}


def _annotate_last_point(axes: "Axes", point: Mapping[str, Any], key: str) -> None:
    """Write the last value at the right edge, also as a percentage of the ensemble's accuracy."""
    value, ensemble = point["accuracy"][key], point["accuracy"]["ensemble"]
    share = f"\n{value / ensemble:.1%} of the\nensemble" if key == "union" and ensemble else ""
    edge: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
    text = f"{value:.3f}{share}"
    axes.annotate(text, (1, value), (5, 0), va="center", color=STUDENT_COLOUR, fontsize=9, **edge)


def _format_images_axis(axes: "Axes") -> None:
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
