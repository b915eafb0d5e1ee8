"""The figure of `ka-ray compare`: one row a method, every seed a dot."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ka_ray.reports.figures.drawing import PALETTE, STUDENT, make_figure, save, shorten, zoom

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABEL_CHARS = 40
TITLES = {"union": "accuracy, all classes", "agreement": "agreement with the ensemble"}
LINE_STYLES = ("-", "--", ":", "-.")
MEAN: dict[str, Any] = {"marker": "D", "linestyle": "", "color": STUDENT, "markersize": 8}
SEED: dict[str, Any] = {
    **{"marker": "o", "linestyle": "", "markersize": 4},
    **{"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.8},
}


def draw_comparison(comparison: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the methods below each other: accuracy, and at its right the agreement with the ensemble.

    Args:
        comparison: A :class:`ka_ray.reports.comparison.Comparison`, dumped. Rows whose label starts with
            "ensemble" are the teachers': lines that the methods are held against.
        folder: Where the PNG goes.
    """
    methods = [row for row in comparison["rows"] if not _is_ensemble(row)]
    lines = [row for row in comparison["rows"] if _is_ensemble(row) and _known(row, "union")]
    panels = [key for key in TITLES if any(_known(row, key) for row in methods)]
    if not panels:
        return []
    height = 1.9 + 0.45 * len(methods) + 0.1 * len(lines)
    figure, axes = make_figure(4 + 3.5 * len(panels), height, columns=len(panels))
    for panel, key in zip(figure.axes, panels, strict=True):
        _draw_panel(panel, methods, lines if key == "union" else [], key)
    axes.set_yticks(range(len(methods)), [shorten(row["label"], MAX_LABEL_CHARS) for row in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=1 + len(panels), frameon=False)
    seeds = len(comparison["seeds"])
    title = f"{shorten(comparison['name'], MAX_LABEL_CHARS)}: methods compared"
    figure.suptitle(f"{title}, {seeds} seed{'s' * (seeds != 1)}")
    return save(figure, folder, "compare")


def _draw_panel(
    axes: "Axes", methods: Sequence[Mapping[str, Any]], lines: Sequence[Mapping[str, Any]], key: str
) -> None:
    if max(len(row[key]["values"]) for row in methods) > 1:
        axes.plot([], [], label="mean of the seeds", **MEAN)  # for the legend alone
        axes.plot([], [], label="one seed", **SEED)
    for number, line in enumerate(lines):
        value = statistics.fmean(_known(line, key))
        colour, style = PALETTE[1 + number % 5], LINE_STYLES[number % 4]
        label = f"{shorten(line['label'], MAX_LABEL_CHARS)}: {value:.3f}"
        axes.axvline(value, color=colour, linestyle=style, linewidth=1.5, label=label, zorder=1)
    for place, row in enumerate(methods):
        _draw_row(axes, place, row[key]["values"])
    shown = [value for row in (*methods, *lines) for value in _known(row, key)]
    axes.set_xlim(*zoom(shown))
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlabel(TITLES[key])


def _draw_row(axes: "Axes", place: int, values: Sequence[float | None]) -> None:
    """Draw one method: its seeds, and their mean with its number."""
    known = [value for value in values if value is not None]
    if not known:
        style: dict[str, Any] = {"va": "center", "color": "0.5", "fontsize": 9, "backgroundcolor": "white"}
        axes.text(0.03, place, "not measured", transform=axes.get_yaxis_transform(), **style)
        return
    mean = statistics.fmean(known)
    axes.plot(mean, place, **MEAN)
    if len(values) > 1:
        axes.plot(known, [place] * len(known), **SEED)
    part = "" if len(known) == len(values) else f" ({len(known)} of {len(values)} seeds)"
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
    clear: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    axes.annotate(f"{mean:.3f}{part}", (mean, place), (0, 7), fontsize=8.5, bbox=clear, **above)


def _is_ensemble(row: Mapping[str, Any]) -> bool:
    return bool(row["label"].startswith("ensemble"))


def _known(row: Mapping[str, Any], key: str) -> list[float]:
    return [value for value in row[key]["values"] if value is not None]
