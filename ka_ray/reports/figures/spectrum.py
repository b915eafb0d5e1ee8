"""Draw the figure of `ka-ray spectrum`: the lowest possible loss of a code of every width, per tap."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.reports.figures.drawing import make_figure, pick_colours, save_figure, shorten

MIN_DRAWN_LOSS = 1e-6
"""Smaller losses are drawn at this value: the features have half precision, so they are rounding errors."""


def draw_spectrum(spectrum: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``spectrum.png``: a line per tap, with a mark at the width of the student.

    Args:
        spectrum: The dict of a :class:`ka_ray.reports.spectrum.Spectrum` (its ``model_dump``).
        folder: Folder of the file.

    Returns:
        The path of the file.
    """
    taps = spectrum["taps"]
    figure, axes = make_figure(8.5, 4.6)
    for (name, tap), colour in zip(taps.items(), pick_colours(len(taps)), strict=True):
        stacked, width = tap["stacked"], tap["width"]
        losses = [max(error, MIN_DRAWN_LOSS) for error in tap["relative_errors"]]
        # Taps have different numbers of channels: as shares they fit on one axis.
        shares = [channels / stacked for channels in range(stacked + 1)]
        axes.plot(shares, losses, color=colour, linewidth=1.6, label=f"{shorten(name)} ({stacked})")
        axes.plot(width / stacked, losses[width], "o", color=colour, markersize=6)
    axes.plot([], [], "o", color="0.4", label="width of the student")  # only for the legend
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=MIN_DRAWN_LOSS * 0.8, top=1.2)
    axes.set_xlabel("width of the code / number of stacked channels")
    axes.set_ylabel("lowest possible loss (share of the variance)")
    axes.grid(alpha=0.3)
    legend: dict[str, Any] = {"title": "tap (stacked channels)", "title_fontsize": 8, "fontsize": 8}
    columns = 1 + len(taps) // 16
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), ncols=columns, frameon=False, **legend)
    figure.suptitle(f"{shorten(spectrum['name'], 40)}: lowest possible loss of the codes")
    return save_figure(figure, folder, "spectrum")
