"""Draw the figure of `ka-ray compare`: one row per method, with a mark per seed and for their mean."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ka_ray.reports.figures.drawing import (
    PALETTE,
    STUDENT_COLOUR,
    make_figure,
    save_figure,
    shorten,
    zoom_limits,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL_CHARS = 40
AXIS_LABELS = {"union": "accuracy on all classes", "agreement": "agreement with the ensemble"}
"""Measure that has a panel of its own -> the label of its axis."""

LINE_STYLES = ("-", "--", ":", "-.")
MEAN_MARK: dict[str, Any] = {"marker": "D", "linestyle": "", "color": STUDENT_COLOUR, "markersize": 8}
SEED_MARK: dict[str, Any] = {
    **{"marker": "o", "linestyle": "", "markersize": 4},
    **{"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.8},
}


def draw_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``compare.png``: accuracy of every method, and to the right its agreement with the ensemble.

    Args:
        comparison: A :class:`ka_ray.reports.comparison.Comparison`, dumped. Rows whose label starts with
            "ensemble" are drawn as vertical lines, because the methods are compared with them.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if no method was measured.
    """
    methods = [row for row in comparison["rows"] if not _is_ensemble(row)]
    ensembles = [row for row in comparison["rows"] if _is_ensemble(row) and _measured(row, "union")]
    panels = [key for key in AXIS_LABELS if any(_measured(row, key) for row in methods)]
    if not panels:
        return []
    height = 1.9 + 0.45 * len(methods) + 0.1 * len(ensembles)
    figure, axes = make_figure(4 + 3.5 * len(panels), height, columns=len(panels))
    for panel, key in zip(figure.axes, panels, strict=True):
        _draw_panel(panel, methods, ensembles if key == "union" else [], key)
    axes.set_yticks(range(len(methods)), [shorten(row["label"], MAX_LABEL_CHARS) for row in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)  # upside down: the first method is on top
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        # Below the panels, because inside a legend would hide seeds.
        figure.legend(handles, labels, loc="outside lower center", ncols=1 + len(panels), frameon=False)
    seeds = len(comparison["seeds"])
    title = f"{shorten(comparison['name'], MAX_LABEL_CHARS)}: comparison of methods"
    figure.suptitle(f"{title}, {seeds} seed{'s' * (seeds != 1)}")
    return save_figure(figure, folder, "compare")


def _draw_panel(
    axes: "Axes", methods: Sequence[Mapping[str, Any]], ensembles: Sequence[Mapping[str, Any]], key: str
) -> None:
    if max(len(row[key]["values"]) for row in methods) > 1:
        # Empty plots: they put one entry per kind of mark into the legend.
        axes.plot([], [], label="mean over the seeds", **MEAN_MARK)
        axes.plot([], [], label="one seed", **SEED_MARK)
    for number, row in enumerate(ensembles):
        value = statistics.fmean(_measured(row, key))
        # The first colour of the palette is that of the students.
        colour, style = PALETTE[1 + number % 5], LINE_STYLES[number % 4]
        label = f"{shorten(row['label'], MAX_LABEL_CHARS)}: {value:.3f}"
        axes.axvline(value, color=colour, linestyle=style, linewidth=1.5, label=label, zorder=1)
    for place, row in enumerate(methods):
        _draw_method(axes, place, row[key]["values"])
    shown = [value for row in (*methods, *ensembles) for value in _measured(row, key)]
    axes.set_xlim(*zoom_limits(shown))
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(AXIS_LABELS[key])


def _draw_method(axes: "Axes", place: int, values: Sequence[float | None]) -> None:
    """Draw the seeds of one method, and their mean with its number."""
    known = [value for value in values if value is not None]
    if not known:
        style: dict[str, Any] = {"va": "center", "color": "0.5", "fontsize": 9, "backgroundcolor": "white"}
        axes.text(0.03, place, "not measured", transform=axes.get_yaxis_transform(), **style)
        return
    mean = statistics.fmean(known)
    axes.plot(mean, place, **MEAN_MARK)
    if len(values) > 1:  # the mark of a single seed would only cover that of the mean
        axes.plot(known, [place] * len(known), **SEED_MARK)
    note = "" if len(known) == len(values) else f" ({len(known)} of {len(values)} seeds)"
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
    # A white box keeps the number readable where a line of an ensemble crosses it.
    box: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    axes.annotate(f"{mean:.3f}{note}", (mean, place), (0, 7), fontsize=8.5, bbox=box, **above)


def _is_ensemble(row: Mapping[str, Any]) -> bool:
    return bool(row["label"].startswith("ensemble"))


def _measured(row: Mapping[str, Any], key: str) -> list[float]:
    return [value for value in row[key]["values"] if value is not None]
