"""The student: one network over all classes, built as a chain of stages between taps."""

from ka_ray.student.cut import find_valid_taps
from ka_ray.student.families import FAMILIES, Family, find_family
from ka_ray.student.network import Student, load_student, save_student
from ka_ray.student.spec import StudentSpec

__all__ = [
    "FAMILIES",
    "Family",
    "Student",
    "StudentSpec",
    "find_family",
    "find_valid_taps",
    "load_student",
    "save_student",
]
