"""The figures of one run: all that its report, its losses and its confusions can show."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ka_ray.reports.figures.curves import epoch_curve, loss_curves
from ka_ray.reports.figures.drawing import STUDENT, TEACHER, draw_bars, make_figure, save, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR = 1e-8
"""Relative errors below are drawn here: a log axis has no zero."""

MAX_LABELLED_CLASSES = 40
MAX_COUNTED_CLASSES = 20


def draw_run_figures(
    report: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: npt.NDArray[Any] | None,
    folder: Path,
) -> list[Path]:
    """Draw every figure that there is something for.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped.
        histories: stage -> its epochs' records, each a :class:`ka_ray.training.fit.Progress` as a dict.
        confusion: The student's counts, rows true classes, ``[K, K]``; None without labels.
        folder: Where the PNGs go; made if missing.
    """
    return [
        *accuracy_bars(report, folder),
        *loss_curves(histories, folder),
        *epoch_curve(report, folder),
        *reconstruction_error(report, folder),
        *confusion_matrix(confusion, report["classes"], folder),
    ]


def accuracy_bars(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the student beside the ensemble and beside each teacher; without labels their agreement alone."""
    accuracy = report["accuracy"]
    pairs = {f"{shorten(name)}\n(own classes)": pair for name, pair in accuracy["per_teacher"].items()}
    all_classes = {"teacher": accuracy["ensemble"], "student": accuracy["union"]}
    groups = {"ensemble\n(all classes)": all_classes, **pairs}
    groups = {name: pair for name, pair in groups.items() if set(pair.values()) != {None}}
    if not groups and accuracy["agreement"] is None:
        return []
    if not groups:
        return _agreement_bar(accuracy, folder)
    figure, axes = make_figure(7.5, 1.5 + 0.62 * len(groups))
    rows = np.arange(len(groups))
    draw_bars(axes, rows - 0.2, [pair["teacher"] for pair in groups.values()], TEACHER, "teacher(s)")
    draw_bars(axes, rows + 0.2, [pair["student"] for pair in groups.values()], STUDENT, "student")
    axes.set_yticks(rows, list(groups))
    axes.invert_yaxis()
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    agreement = accuracy["agreement"]
    note = "" if agreement is None else f"   (student and ensemble agree on {agreement:.3f} of the images)"
    axes.set_xlabel(f"accuracy{note}")
    figure.suptitle(f"Accuracy on {accuracy['labelled']:,} labelled images")
    return save(figure, folder, "accuracy")


def _agreement_bar(accuracy: Mapping[str, Any], folder: Path) -> list[Path]:
    figure, axes = make_figure(7.5, 1.6)
    draw_bars(axes, np.zeros(1), [accuracy["agreement"]], STUDENT, "")
    axes.set_yticks([0], ["student and\nensemble"])
    axes.set_ylim(-0.6, 0.6)
    axes.set_xlabel("share of images on which they say the same")
    figure.suptitle(f"Agreement on {accuracy['images']:,} images (they have no labels)")
    return save(figure, folder, "accuracy")


def reconstruction_error(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw, per tap, what the codes lose of the stacked features, beside the least that any could lose."""
    codes = report["codes"]
    if not codes:
        return []
    figure, axes = make_figure(7.5, 1.7 + 0.36 * len(codes))
    rows = np.arange(len(codes))
    learned = np.array([max(code["relative_error"], FLOOR) for code in codes.values()])
    optimal = np.array([max(code["optimal_relative_error"], FLOOR) for code in codes.values()])
    axes.hlines(rows, optimal, learned, color="0.7", linewidth=3, zorder=1)
    hollow: dict[str, Any] = {"marker": "D", "facecolors": "none", "edgecolors": TEACHER, "linewidths": 2}
    axes.scatter(optimal, rows, 75, label="optimum", **hollow)
    axes.scatter(learned, rows, 38, color=STUDENT, label="learned", zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(min(optimal.min(), learned.min()) / 2, max(1.0, learned.max()) * 1.5)
    axes.set_yticks(rows, [f"{shorten(tap)}  ({c['width']} of {c['stacked']})" for tap, c in codes.items()])
    axes.set_ylim(len(codes) - 0.4, -0.6)
    axes.grid(alpha=0.3)
    note = f"; {FLOOR:g} stands for that or less" if min(optimal.min(), learned.min()) <= FLOOR else ""
    axes.set_xlabel(f"relative error (share of the variance lost{note})")
    axes.set_ylabel("tap (channels kept)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.suptitle("What the codes lose of the teachers' features")
    return save(figure, folder, "reconstruction")


def confusion_matrix(matrix: npt.NDArray[Any] | None, classes: Sequence[str], folder: Path) -> list[Path]:
    """Draw which classes the student takes for which, in percent of the images of the true class."""
    if matrix is None or matrix.sum() == 0:
        return []
    count = len(classes)
    totals = matrix.sum(1, keepdims=True)
    percent = 100 * np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    side = min(3.6 + 0.42 * count, 12.0)
    figure, axes = make_figure(side + 0.8, side)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the true class")
    step = math.ceil(count / MAX_LABELLED_CLASSES)
    names = [shorten(name) for name in classes[::step]]
    axes.set_xticks(range(0, count, step), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, count, step), names)
    axes.tick_params(labelsize=9 if count <= MAX_COUNTED_CLASSES else 7)
    axes.set_xlabel("student says")
    axes.set_ylabel("true class")
    if count <= MAX_COUNTED_CLASSES:
        _write_cells(axes, percent)
    figure.suptitle(f"The student's confusions on {int(matrix.sum()):,} images")
    return save(figure, folder, "confusion")


def _write_cells(axes: "Axes", percent: npt.NDArray[Any]) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value > 0.5:  # what rounds to 0, and rows without images, stay empty
            colour = "black" if value > 55 else "white"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
