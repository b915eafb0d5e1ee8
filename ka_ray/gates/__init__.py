"""Gates: which teacher's classes an image shows."""

from ka_ray.gates.extended import ExtendedGate
from ka_ray.gates.gate import Gate
from ka_ray.gates.inputs import GateSample
from ka_ray.gates.owner_gate import OwnerGate

__all__ = ["ExtendedGate", "Gate", "GateSample", "OwnerGate"]
