"""The one network over all classes: its stages, and how each is learned."""

from ka_ray.student.cut import working_taps
from ka_ray.student.families import FAMILIES, Family, find_family
from ka_ray.student.network import Student, StudentSpec, load_student, save_student

__all__ = [
    "FAMILIES",
    "Family",
    "Student",
    "StudentSpec",
    "find_family",
    "load_student",
    "save_student",
    "working_taps",
]
