"""The training loop that all stages share, and its batches. Only torch, no Ray."""

from ka_ray.training.averaging import WeightAverage
from ka_ray.training.batches import Batches
from ka_ray.training.fit import Progress, fit
from ka_ray.training.settings import FitSettings

__all__ = ["Batches", "FitSettings", "Progress", "WeightAverage", "fit"]
