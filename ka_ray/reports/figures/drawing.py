"""What all figures share: creating and saving them, bars, colours, short names and axis limits."""

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
"""Colours that colour-blind people can tell apart, too (Okabe and Ito, 2008)."""

STUDENT_COLOUR, TEACHER_COLOUR = PALETTE[0], PALETTE[4]

MAX_NAME_CHARS = 22
MIN_AXIS_SPAN = 0.02
"""An axis of accuracies spans at least this much, so that noise does not look like a large difference."""


def make_figure(
    width: float, height: float, panels: Sequence[float] = (1,), columns: int = 1
) -> tuple["Figure", "Axes"]:
    """Create an empty figure.

    It is created without pyplot, which would register it globally and could start a window system.

    Args:
        width: Width of the figure, in inches.
        height: Height of the figure, in inches.
        panels: Relative height of each row of panels.
        columns: Number of panels per row; the panels of a row share their y axis.

    Returns:
        The figure and its first panel; ``figure.axes`` lists all panels, row by row.
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


def save_figure(figure: "Figure", folder: Path, name: str) -> list[Path]:
    """Write a figure as a PNG file.

    Args:
        figure: The figure.
        folder: Folder of the file, which is created if it does not exist.
        name: Name of the file without its suffix.

    Returns:
        The path of the file, in a list.
    """
    make_folder(folder)
    path = folder / f"{name}.png"
    with atomic_file(path) as part:
        figure.savefig(part, format="png")  # without pyplot this always uses Agg, which needs no display
    return [path]


def draw_bars(
    axes: "Axes", rows: npt.NDArray[Any], values: Sequence[float | None], colour: str, label: str
) -> None:
    """Draw shares as horizontal bars, each with its number.

    Args:
        axes: The panel.
        rows: Vertical position of each bar.
        values: Length of each bar, in [0, 1]; None is written as "not measured".
        colour: Colour of the bars.
        label: Their name in the legend.
    """
    lengths = [0.0 if value is None else value for value in values]
    texts = ["not measured" if value is None else f"{value:.3f}" for value in values]
    bars = axes.barh(rows, lengths, 0.38, color=colour, label=label)
    axes.bar_label(bars, texts, padding=4, fontsize=9)
    axes.set_xlim(0, 1.12)  # space for the number behind a bar of length 1
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def pick_colours(count: int) -> Sequence[Any]:
    """Return ``count`` colours that are easy to tell apart.

    Up to six come from a fixed palette. More are steps of one scale, so that the order of the lines (from the
    first layer to the last) shows as a gradient.
    """
    if count <= len(PALETTE):
        return PALETTE[:count]
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 0.92, count)))  # its end is too bright on white


def shorten(name: str, limit: int = MAX_NAME_CHARS) -> str:
    r"""Cut a long name and mark the cut with an ellipsis; a name is text, never a formula.

    Args:
        name: The name.
        limit: Maximum number of characters, the ellipsis included.

    Example:
        >>> shorten("layer4.1.bn2"), shorten("layer4.1.bn2", 7)
        ('layer4.1.bn2', 'layer4…')
    """
    cut = name if len(name) <= limit else f"{name[: limit - 1]}…"
    return cut.replace("$", r"\$")  # matplotlib would read what stands between two of them as TeX


def zoom_limits(values: Sequence[float]) -> tuple[float, float]:
    """Return the limits of an axis that shows these shares with a margin around them, cut shortly above 1.

    Example:
        >>> low, high = zoom_limits([0.5, 0.7])
        >>> round(low, 3), round(high, 3)
        (0.48, 0.72)
    """
    low, high = min(values), max(values)
    span = max(high - low, MIN_AXIS_SPAN)
    middle = (low + high) / 2
    # Shares cannot be above 1; the rest of the margin keeps a point at 1 from being cut in half.
    return middle - 0.6 * span, min(middle + 0.6 * span, 1 + 0.1 * span)


def label_log_axis(axes: "Axes", name: str) -> None:
    """Make the y axis logarithmic and label it with plain numbers, such as 0.2 instead of 2 × 10⁻¹.

    Args:
        axes: The panel.
        name: Label of the axis.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    # A short axis shows at most two powers of ten: label their multiples by 2 and 5, too.
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(name)
