"""Draw the figures of runs as PNG files.

Each function returns the paths of the files that it wrote, and none if there is nothing to draw. matplotlib
is imported when the first figure is drawn, because the import takes a second. No window system is needed
and no global state of matplotlib is changed.
"""

from ka_ray.reports.figures.comparison import draw_comparison
from ka_ray.reports.figures.confusion import draw_confusion_matrix
from ka_ray.reports.figures.curves import draw_epoch_curve, draw_loss_curves
from ka_ray.reports.figures.run import (
    draw_accuracy_bars,
    draw_reconstruction_error,
    draw_run_figures,
)
from ka_ray.reports.figures.spectrum import draw_spectrum
from ka_ray.reports.figures.tune import draw_tune_result

__all__ = [
    "draw_accuracy_bars",
    "draw_comparison",
    "draw_confusion_matrix",
    "draw_epoch_curve",
    "draw_loss_curves",
    "draw_reconstruction_error",
    "draw_run_figures",
    "draw_spectrum",
    "draw_tune_result",
]
