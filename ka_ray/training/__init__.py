"""The one training loop and its batches, in plain torch."""

from ka_ray.training.batches import Batches
from ka_ray.training.fit import FitSettings, Progress, fit

__all__ = ["Batches", "FitSettings", "Progress", "fit"]
