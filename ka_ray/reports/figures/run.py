"""Draw the figures of one run from its report, its losses and its confusion matrix."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ka_ray.reports.figures.confusion import draw_confusion_matrix
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

MIN_DRAWN_ERROR = 1e-8
"""Smaller errors are drawn at this value, because a log axis has no zero."""


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
        *draw_confusion_matrix(confusion, report["classes"], folder, report.get("teacher_classes", {})),
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
