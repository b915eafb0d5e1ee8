"""The training loop that all stages share, and its batches. Only torch, no Ray."""

from ka_ray.training.batches import Batches
from ka_ray.training.fit import FitSettings, Progress, fit

__all__ = ["Batches", "FitSettings", "Progress", "fit"]
