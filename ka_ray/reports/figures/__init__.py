"""The figures of runs, as PNG files. Each function returns the paths it wrote, none if there is nothing.

matplotlib is imported when the first figure is drawn. No window system and no global state is touched.
"""

from ka_ray.reports.figures.comparison import draw_comparison
from ka_ray.reports.figures.curves import epoch_curve, loss_curves
from ka_ray.reports.figures.run import accuracy_bars, confusion_matrix, draw_run_figures, reconstruction_error
from ka_ray.reports.figures.spectrum import draw_spectrum
from ka_ray.reports.figures.tune import draw_tune_result

__all__ = [
    "accuracy_bars",
    "confusion_matrix",
    "draw_comparison",
    "draw_run_figures",
    "draw_spectrum",
    "draw_tune_result",
    "epoch_curve",
    "loss_curves",
    "reconstruction_error",
]
