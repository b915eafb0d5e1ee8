"""What all figures share: making and saving them, bars, colours, short names, zoomed axes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ka_ray.storage.files import atomic_file, make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008): told apart by colour-blind people, too."""

STUDENT, TEACHER = PALETTE[0], PALETTE[4]

MAX_NAME_CHARS = 22
LEAST_SPAN = 0.02
"""An axis of shares shows at least this much: smaller differences are not worth a magnifying glass."""


def make_figure(
    width: float, height: float, panels: Sequence[float] = (1,), columns: int = 1
) -> tuple["Figure", "Axes"]:
    """Make a figure without pyplot, so it belongs to no window.

    Args:
        width: In inches.
        height: In inches.
        panels: The relative heights of panels one below the other.
        columns: Panels side by side; they share their y axis.

    Returns:
        The figure and its first panel; ``figure.axes`` has all.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=150, layout=layout)
    grid = figure.subplots(len(panels), columns, squeeze=False, sharey="row", height_ratios=list(panels))
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    first: Axes = grid[0, 0]
    return figure, first


def save(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a figure as a PNG into a folder, which is made if missing."""
    make_folder(folder)
    path = folder / f"{name}.png"
    with atomic_file(path) as part:
        figure.savefig(part, format="png")  # without pyplot this is always Agg
    return [path]


def draw_bars(
    axes: "Axes", rows: npt.NDArray[Any], values: Sequence[float | None], colour: str, label: str
) -> None:
    """Draw shares as bars to the right, each with its number."""
    lengths = [0.0 if value is None else value for value in values]
    texts = ["not measured" if value is None else f"{value:.3f}" for value in values]
    drawn = axes.barh(rows, lengths, 0.38, color=colour, label=label)
    axes.bar_label(drawn, texts, padding=4, fontsize=9)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def colours(count: int) -> Sequence[Any]:
    """Give colours that stay apart: a fixed few, or for more lines steps of one scale from first to last."""
    if count <= len(PALETTE):
        return PALETTE[:count]
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.92, count)))


def shorten(name: str, limit: int = MAX_NAME_CHARS) -> str:
    """Cut a long name.

    Example:
        >>> shorten("layer4.1.bn2"), shorten("layer4.1.bn2", 7)
        ('layer4.1.bn2', 'layer4…')
    """
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def zoom(values: Sequence[float]) -> tuple[float, float]:
    """Give the limits of an axis that shows these shares and some air around them, little of it above 1.

    Example:
        >>> low, high = zoom([0.5, 0.7])
        >>> round(low, 3), round(high, 3)
        (0.48, 0.72)
    """
    low, high = min(values), max(values)
    span = max(high - low, LEAST_SPAN)
    middle = (low + high) / 2
    return middle - 0.6 * span, min(middle + 0.6 * span, 1 + 0.1 * span)
