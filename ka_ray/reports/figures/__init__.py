"""The figures of runs, as PNG files. Each function returns the paths it wrote, none if there is nothing.

matplotlib is imported when the first figure is drawn. No window system and no global state is touched.
"""

from ka_ray.reports.figures.comparison import compare_methods
from ka_ray.reports.figures.curves import epoch_curve, loss_curves
from ka_ray.reports.figures.run import accuracy_bars, confusion_matrix, draw_all, reconstruction_error
from ka_ray.reports.figures.spectrum import draw_spectrum
from ka_ray.reports.figures.sweep import draw_sweep

__all__ = [
    "accuracy_bars",
    "compare_methods",
    "confusion_matrix",
    "draw_all",
    "draw_spectrum",
    "draw_sweep",
    "epoch_curve",
    "loss_curves",
    "reconstruction_error",
]
