"""From stacked features to codes, and from the teachers' scores to the student's targets."""

from ka_ray.amalgamation.autoencoder import AutoEncoder, WhitenedAutoEncoder
from ka_ray.amalgamation.moments import Moments
from ka_ray.amalgamation.scores import LabelSets

METHODS = {"direct": WhitenedAutoEncoder}
"""How codes are learned: name in the config -> what is trained at each tap."""

__all__ = ["METHODS", "AutoEncoder", "LabelSets", "Moments", "WhitenedAutoEncoder"]
