"""The figures of a run, as PNG files. Each function returns the paths it wrote, none if there is nothing.

matplotlib is imported when the first figure is drawn. No window system and no global state is touched.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008): told apart by colour-blind people, too."""

STUDENT, TEACHER = PALETTE[0], PALETTE[4]
FLOOR = 1e-8
"""Relative errors below are drawn here: a log axis has no zero."""

MAX_NAME_CHARS = 22
MAX_LABELLED_CLASSES = 40
MAX_COUNTED_CLASSES = 20


def draw_all(
    report: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: npt.NDArray[Any] | None,
    folder: Path,
) -> list[Path]:
    """Draw every figure that there is something for.

    Args:
        report: A :class:`ka_ray.report.Report`, dumped.
        histories: stage -> its epochs' records, each a :class:`ka_ray.training.fit.Progress` as a dict.
        confusion: The student's counts, rows true classes, ``[K, K]``; None without labels.
        folder: Where the PNGs go; made if missing.
    """
    return [
        *accuracy_bars(report, folder),
        *loss_curves(histories, folder),
        *reconstruction_error(report, folder),
        *confusion_matrix(confusion, report["classes"], folder),
    ]


def accuracy_bars(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the student beside the ensemble and beside each teacher; without labels their agreement alone."""
    accuracy = report["accuracy"]
    pairs = {f"{_short(name)}\n(own classes)": pair for name, pair in accuracy["per_teacher"].items()}
    all_classes = {"teacher": accuracy["ensemble"], "student": accuracy["union"]}
    groups = {"ensemble\n(all classes)": all_classes, **pairs}
    groups = {name: pair for name, pair in groups.items() if set(pair.values()) != {None}}
    if not groups and accuracy["agreement"] is None:
        return []
    if not groups:
        return _agreement_bar(accuracy, folder)
    figure, axes = _figure(7.5, 1.5 + 0.62 * len(groups))
    rows = np.arange(len(groups))
    _bars(axes, rows - 0.2, [pair["teacher"] for pair in groups.values()], TEACHER, "teacher(s)")
    _bars(axes, rows + 0.2, [pair["student"] for pair in groups.values()], STUDENT, "student")
    axes.set_yticks(rows, list(groups))
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    agreement = accuracy["agreement"]
    note = "" if agreement is None else f"   (student and ensemble agree on {agreement:.3f} of the images)"
    axes.set_xlabel(f"accuracy{note}")
    figure.suptitle(f"Accuracy on {accuracy['labelled']:,} labelled images")
    return _save(figure, folder, "accuracy")


def _agreement_bar(accuracy: Mapping[str, Any], folder: Path) -> list[Path]:
    figure, axes = _figure(7.5, 1.6)
    _bars(axes, np.zeros(1), [accuracy["agreement"]], STUDENT, "")
    axes.set_yticks([0], ["student and\nensemble"])
    axes.set_ylim(-0.6, 0.6)
    axes.set_xlabel("share of images on which they say the same")
    figure.suptitle(f"Agreement on {accuracy['images']:,} images (they have no labels)")
    return _save(figure, folder, "accuracy")


def _bars(
    axes: "Axes", rows: npt.NDArray[Any], values: Sequence[float | None], colour: str, label: str
) -> None:
    lengths = [0.0 if value is None else value for value in values]
    texts = ["not measured" if value is None else f"{value:.3f}" for value in values]
    drawn = axes.barh(rows, lengths, 0.38, color=colour, label=label)
    axes.bar_label(drawn, texts, padding=4, fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def loss_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> list[Path]:
    """Draw how the losses fell, one panel a stage, over the images seen."""
    stages = {stage: history for stage, history in histories.items() if history}
    if not stages:
        return []
    heights = [max(2.4, 0.6 + 0.2 * min(len(history[0]["losses"]), 16)) for history in stages.values()]
    figure, _ = _figure(8.5, 0.5 + sum(heights), panels=heights)
    for axes, (stage, history) in zip(figure.axes, stages.items(), strict=True):
        _loss_panel(axes, stage, history)
    figure.axes[-1].set_xlabel("images seen")
    figure.suptitle("Loss, mean of each epoch")
    return _save(figure, folder, "losses")


def _loss_panel(axes: "Axes", stage: str, history: Sequence[Mapping[str, Any]]) -> None:
    names = list(history[0]["losses"])
    images = [record["images"] for record in history]
    for name, colour in zip(names, _colours(len(names)), strict=True):
        losses = [record["losses"][name] for record in history]
        shown = [loss if loss > 0 and math.isfinite(loss) else math.nan for loss in losses]
        axes.plot(images, shown, "o-", color=colour, label=_short(name), markersize=3.5, linewidth=1.5)
    axes.set_yscale("log")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_ylabel("loss")
    axes.set_title(stage, loc="left", fontweight="bold")
    axes.grid(alpha=0.3)
    columns = 1 + (len(names) - 1) // 16
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), ncols=columns, fontsize=8, frameon=False)


def reconstruction_error(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw, per tap, what the codes lose of the stacked features, beside the least that any could lose."""
    codes = report["codes"]
    if not codes:
        return []
    figure, axes = _figure(7.5, 1.7 + 0.36 * len(codes))
    rows = np.arange(len(codes))
    learned = np.array([max(code["relative_error"], FLOOR) for code in codes.values()])
    optimal = np.array([max(code["optimal_relative_error"], FLOOR) for code in codes.values()])
    axes.hlines(rows, optimal, learned, color="0.7", linewidth=3, zorder=1)
    hollow: dict[str, Any] = {"marker": "D", "facecolors": "none", "edgecolors": TEACHER, "linewidths": 2}
    axes.scatter(optimal, rows, 75, label="optimum", **hollow)
    axes.scatter(learned, rows, 38, color=STUDENT, label="learned", zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(min(optimal.min(), learned.min()) / 2, max(1.0, learned.max()) * 1.5)
    axes.set_yticks(rows, [f"{_short(tap)}  ({c['width']} of {c['stacked']})" for tap, c in codes.items()])
    axes.set_ylim(len(codes) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    note = f"; {FLOOR:g} stands for that or less" if min(optimal.min(), learned.min()) <= FLOOR else ""
    axes.set_xlabel(f"relative error (share of the variance lost{note})")
    axes.set_ylabel("tap (channels kept)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.suptitle("What the codes lose of the teachers' features")
    return _save(figure, folder, "reconstruction")


def confusion_matrix(matrix: npt.NDArray[Any] | None, classes: Sequence[str], folder: Path) -> list[Path]:
    """Draw which classes the student takes for which, in percent of the images of the true class."""
    if matrix is None or matrix.sum() == 0:
        return []
    count = len(classes)
    totals = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = min(3.6 + 0.42 * count, 12.0)
    figure, axes = _figure(side + 0.8, side)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class")
    step = math.ceil(count / MAX_LABELLED_CLASSES)
    names = [_short(name) for name in classes[::step]]
    axes.set_xticks(range(0, count, step), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, count, step), names)
    axes.tick_params(labelsize=9 if count <= MAX_COUNTED_CLASSES else 7)
    axes.set_xlabel("student says")
    axes.set_ylabel("true class")
    if count <= MAX_COUNTED_CLASSES:
        _write_cells(axes, percent)
    figure.suptitle(f"The student's confusions on {int(matrix.sum()):,} images")
    return _save(figure, folder, "confusion")


def _write_cells(axes: "Axes", percent: npt.NDArray[Any]) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value > 0.5:  # what rounds to 0, and rows without images, stay empty
            colour = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)


def _figure(width: float, height: float, panels: Sequence[float] = (1,)) -> tuple["Figure", "Axes"]:
    """Make a figure of panels one below the other; it needs no pyplot, so it belongs to no window."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=list(panels))
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    first: Axes = grid[0, 0]
    return figure, first


def _colours(count: int) -> Sequence[Any]:
    """Give colours that stay apart: a fixed few, or for more lines steps of one scale from first to last."""
    if count <= len(PALETTE):
        return PALETTE[:count]
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.92, count)))


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_CHARS else f"{name[: MAX_NAME_CHARS - 1]}…"


def _save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    figure.savefig(path, format="png")  # without pyplot this is always Agg
    return [path]
