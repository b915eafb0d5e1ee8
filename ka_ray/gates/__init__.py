"""Gates: which teacher's classes an image shows."""

from ka_ray.gates.gate import Gate
from ka_ray.gates.inputs import GateSample

__all__ = ["Gate", "GateSample"]
