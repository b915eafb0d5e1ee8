"""Build and load teachers: a network, a checkpoint, the class names and the network's own preprocessing."""

from ka_ray.teachers.networks import NETWORKS, build_network
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.teacher import Teacher, build_teacher, load_teacher

__all__ = ["NETWORKS", "Preprocess", "Teacher", "build_network", "build_teacher", "load_teacher"]
