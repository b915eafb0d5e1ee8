"""Draw the confusion matrix of a student, with lines between the classes of its teachers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ka_ray.reports.figures.drawing import PALETTE, make_figure, save_figure, shorten
from ka_ray.sparse_counts import SparseCounts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_LABELLED_CLASSES = 40
"""With more classes, only every second, third, ... class of a confusion matrix has a label."""

MAX_COUNTED_CLASSES = 20
"""With more classes, the cells of a confusion matrix are too small for numbers."""

MAX_BORDERS = 40
"""With more borders between the classes of teachers, none is drawn in a confusion matrix."""

BORDER_COLOUR = PALETTE[1]
"""Told apart from every colour of the scale, from dark blue over grey to yellow."""

MAX_DRAWN_CLASSES = 1000
"""With more classes, the cells are smaller than pixels, so that neighbouring classes are drawn as one."""


def draw_confusion_matrix(
    matrix: SparseCounts | None,
    classes: Sequence[str],
    folder: Path,
    teachers: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Draw ``confusion.png``: how often the student predicts each class for the images of each true class.

    Args:
        matrix: Number of images per true class (rows) and predicted class (columns), ``[K, K]``; None without
            labels.
        classes: Names of the K classes.
        folder: Folder of the file.
        teachers: Name of a teacher -> its classes. Lines separate the classes of one teacher from the
            next one's; None for no lines.

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
    _label_classes(axes, classes, count, group)
    if count <= MAX_COUNTED_CLASSES:
        _write_percentages(axes, percent)
    _draw_borders(axes, [border / group for border in find_borders(classes, teachers or {})])
    title = f"Confusion matrix of the student on {matrix.total:,} images"
    figure.suptitle(title + (together if group > 1 else ""))
    return save_figure(figure, folder, "confusion")


def _label_classes(axes: "Axes", classes: Sequence[str], count: int, group: int) -> None:
    """Label the rows and columns of a confusion matrix.

    Args:
        axes: The panel.
        classes: Names of all classes.
        count: Number of rows and columns.
        group: Number of classes in each row and column.
    """
    step = math.ceil(count / MAX_LABELLED_CLASSES)
    names = [shorten(name) for name in classes[:: step * group]]
    axes.set_xticks(range(0, count, step), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, count, step), names)
    axes.tick_params(labelsize=9 if count <= MAX_COUNTED_CLASSES else 7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def find_borders(classes: Sequence[str], teachers: Mapping[str, Sequence[str]]) -> list[int]:
    """Return the positions in the classes at which those of another teacher begin.

    A class that several teachers know counts as the first one's.

    Args:
        classes: Names of all classes, in the order of the student's scores.
        teachers: Name of a teacher -> its classes.

    Example:
        >>> find_borders(["a", "b", "c", "d"], {"one": ["a", "b"], "two": ["b", "c", "d"]})
        [2]
    """
    owners = {name: teacher for teacher in reversed(list(teachers)) for name in teachers[teacher]}
    return [i for i in range(1, len(classes)) if owners.get(classes[i]) != owners.get(classes[i - 1])]


def _draw_borders(axes: "Axes", positions: Sequence[float]) -> None:
    if len(positions) > MAX_BORDERS:  # classes of several teachers take turns: lines would hide the cells
        return
    for position in positions:
        for draw in (axes.axvline, axes.axhline):
            draw(position - 0.5, color=BORDER_COLOUR, linewidth=1.5)


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
