"""Draw the figures of one run from its report, its losses and its confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ka_ray.reports.figures.curves import draw_epoch_curve, draw_loss_curves
from ka_ray.reports.figures.drawing import (
    STUDENT_COLOUR,
    TEACHER_COLOUR,
    draw_bars,
    make_figure,
    save_figure,
    shorten,
)
from ka_ray.sparse_counts import SparseCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_DRAWN_ERROR = 1e-8
"""Smaller errors are drawn at this value, because a log axis has no zero."""

MAX_LABELLED_CLASSES = 40
"""With more classes, only every second, third, ... class of a confusion matrix has a label."""

MAX_COUNTED_CLASSES = 20
"""With more classes, the cells of a confusion matrix are too small for numbers."""

MAX_DRAWN_CLASSES = 1000
"""With more classes, the cells are smaller than pixels, so that neighbouring classes are drawn as one."""


def draw_run_figures(
    report: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    confusion: SparseCounts | None,
    folder: Path,
) -> list[Path]:
    """Draw every figure for which the run has data.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped.
        histories: Stage -> the records of its epochs, each a :class:`ka_ray.training.fit.Progress` as a dict.
        confusion: Number of images per true class (rows) and class that the student predicts (columns),
            ``[K, K]``; None without labels.
        folder: Folder of the files, which is created if it does not exist.

    Returns:
        The paths of the files.
    """
    return [
        *draw_accuracy_bars(report, folder),
        *draw_loss_curves(histories, folder),
        *draw_epoch_curve(report, folder),
        *draw_reconstruction_error(report, folder),
        *draw_confusion_matrix(confusion, report["classes"], folder),
    ]


def draw_accuracy_bars(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``accuracy.png``: the student next to the ensemble and to each teacher.

    Without labels it shows only the agreement of student and ensemble.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped; its ``accuracy`` is drawn.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if neither accuracy nor agreement was measured.
    """
    accuracy = report["accuracy"]
    all_classes = {"teacher": accuracy["ensemble"], "student": accuracy["union"]}
    pairs = {f"classes of\n{shorten(name)}": pair for name, pair in accuracy["per_teacher"].items()}
    groups = {"all\nclasses": all_classes, **pairs}
    # A teacher is left out if no image of its classes has a label.
    groups = {name: pair for name, pair in groups.items() if set(pair.values()) != {None}}
    if not groups and accuracy["agreement"] is None:
        return []
    if not groups:
        return _draw_agreement_bar(accuracy, folder)
    figure, axes = make_figure(7.5, 1.5 + 0.62 * len(groups))
    rows = np.arange(len(groups))
    teachers, students = ([pair[who] for pair in groups.values()] for who in ("teacher", "student"))
    draw_bars(axes, rows - 0.2, teachers, TEACHER_COLOUR, "teacher (all classes: ensemble of the teachers)")
    draw_bars(axes, rows + 0.2, students, STUDENT_COLOUR, "student")
    axes.set_yticks(rows, list(groups))
    axes.invert_yaxis()  # the first group is on top
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    agreement = accuracy["agreement"]
    note = "" if agreement is None else f" (agreement of student and ensemble: {agreement:.3f})"
    axes.set_xlabel(f"accuracy{note}")
    figure.suptitle(f"Accuracy on {accuracy['labelled']:,} labelled images")
    return save_figure(figure, folder, "accuracy")


def _draw_agreement_bar(accuracy: Mapping[str, Any], folder: Path) -> list[Path]:
    figure, axes = make_figure(7.5, 1.6)
    draw_bars(axes, np.zeros(1), [accuracy["agreement"]], STUDENT_COLOUR, "")
    axes.set_yticks([0], ["student and\nensemble"])
    axes.set_ylim(-0.6, 0.6)
    axes.set_xlabel("share of the images for which both predict the same class")
    figure.suptitle(f"Agreement on {accuracy['images']:,} images without labels")
    return save_figure(figure, folder, "accuracy")


def draw_reconstruction_error(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``reconstruction.png``: the error of every code, and the lowest error that is possible.

    Args:
        report: A :class:`ka_ray.reports.report.Report`, dumped; its ``codes`` are drawn.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if the run has no codes.
    """
    codes = report["codes"]
    if not codes:
        return []
    figure, axes = make_figure(7.5, 1.7 + 0.36 * len(codes))
    rows = np.arange(len(codes))
    errors = np.array([max(code["relative_error"], MIN_DRAWN_ERROR) for code in codes.values()])
    optima = np.array([max(code["optimal_relative_error"], MIN_DRAWN_ERROR) for code in codes.values()])
    smallest = min(optima.min(), errors.min())
    axes.hlines(rows, optima, errors, color="0.7", linewidth=3, zorder=1)
    # Hollow, so that a code that reaches the optimum is seen inside its mark.
    hollow: dict[str, Any] = {"marker": "D", "facecolors": "none", "edgecolors": TEACHER_COLOUR}
    axes.scatter(optima, rows, 75, linewidths=2, label="lowest possible error (PCA)", **hollow)
    axes.scatter(errors, rows, 38, color=STUDENT_COLOUR, label="error of this run's code", zorder=3)
    axes.set_xscale("log")
    axes.set_xlim(smallest / 2, max(1.0, errors.max()) * 1.5)
    axes.set_yticks(rows, [f"{shorten(tap)}  ({c['width']} of {c['stacked']})" for tap, c in codes.items()])
    axes.set_ylim(len(codes) - 0.4, -0.6)  # upside down: the first tap is on top
    axes.grid(alpha=0.3)
    note = f" (at least {MIN_DRAWN_ERROR:g} is drawn)" if smallest <= MIN_DRAWN_ERROR else ""
    axes.set_xlabel(f"relative error: share of the variance that is lost{note}")
    axes.set_ylabel("tap (channels kept)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.suptitle("Reconstruction of the teachers' features from the codes")
    return save_figure(figure, folder, "reconstruction")


def draw_confusion_matrix(matrix: SparseCounts | None, classes: Sequence[str], folder: Path) -> list[Path]:
    """Draw ``confusion.png``: how often the student predicts each class for the images of each true class.

    Args:
        matrix: Number of images per true class (rows) and predicted class (columns), ``[K, K]``; None without
            labels.
        classes: Names of the K classes.
        folder: Folder of the file.

    Returns:
        The path of the file; nothing if no image has a label.
    """
    if matrix is None or matrix.total == 0:
        return []
    group = math.ceil(len(classes) / MAX_DRAWN_CLASSES)
    percent, together = _row_percentages(matrix.to_dense(group)), f", {group} classes in each row and column"
    count = len(percent)
    side = min(3.6 + 0.42 * count, 12.0)
    figure, axes = make_figure(side + 0.8, side)
    image = axes.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="% of the images of the true class")
    step = math.ceil(count / MAX_LABELLED_CLASSES)
    names = [shorten(name) for name in classes[:: step * group]]
    axes.set_xticks(range(0, count, step), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, count, step), names)
    axes.tick_params(labelsize=9 if count <= MAX_COUNTED_CLASSES else 7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if count <= MAX_COUNTED_CLASSES:
        _write_percentages(axes, percent)
    title = f"Confusion matrix of the student on {matrix.total:,} images"
    figure.suptitle(title + (together if group > 1 else ""))
    return save_figure(figure, folder, "confusion")


def _row_percentages(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return shares of each row in percent; a row without images becomes NaN, which is drawn as empty."""
    totals = matrix.sum(1, keepdims=True)
    percent: npt.NDArray[Any] = np.full(matrix.shape, np.nan)
    np.divide(100 * matrix, totals, out=percent, where=totals > 0)
    return percent


def _write_percentages(axes: "Axes", percent: npt.NDArray[Any]) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value > 0.5:  # cells that round to 0, and rows without images (NaN), stay empty
            colour = "black" if value > 55 else "white"  # readable on the light and the dark end of the scale
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
