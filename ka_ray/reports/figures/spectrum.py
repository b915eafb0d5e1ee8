"""The figure of `ka-ray spectrum`: what a code of every width loses at least, tap by tap."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ka_ray.reports.figures.drawing import colours, make_figure, save, shorten

SMALLEST = 1e-6
"""Losses below are rounding: the features come in half precision."""


def draw_spectrum(spectrum: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw the loss over the width as a share of the stacked channels; a dot marks the student's width.

    Args:
        spectrum: A :class:`ka_ray.reports.spectrum.Spectrum`, dumped.
        folder: Where the PNG goes.
    """
    taps = spectrum["taps"]
    figure, axes = make_figure(8.5, 4.6)
    for (name, tap), colour in zip(taps.items(), colours(len(taps)), strict=True):
        stacked, width = tap["stacked"], tap["width"]
        lost = [max(error, SMALLEST) for error in tap["relative_errors"]]
        shares = [channels / stacked for channels in range(stacked + 1)]
        axes.plot(shares, lost, color=colour, linewidth=1.6, label=f"{shorten(name)} ({stacked})")
        axes.plot(width / stacked, lost[width], "o", color=colour, markersize=6)
    axes.plot([], [], "o", color="0.4", label="the student's width")
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=SMALLEST * 0.8, top=1.2)
    axes.set_xlabel("width of the code, as a share of the stacked channels")
    axes.set_ylabel("share of the variance lost, at least")
    axes.grid(alpha=0.3)
    columns = 1 + len(taps) // 16
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), ncols=columns, fontsize=8, frameon=False)
    figure.suptitle(f"{shorten(spectrum['name'], 40)}: what codes can keep")
    return save(figure, folder, "spectrum")
