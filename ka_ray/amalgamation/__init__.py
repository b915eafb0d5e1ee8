"""From stacked features to codes, and from the teachers' scores to the student's targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ka_ray.amalgamation.autoencoder import (
    AutoEncoder,
    IsometricAutoEncoder,
    LinkLearner,
    WhitenedAutoEncoder,
)
from ka_ray.amalgamation.chain import Amalgamation, all_at_once, one_by_one
from ka_ray.amalgamation.common_features import CommonFeatureLearner
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.numerics.moments import Moments


@dataclass(frozen=True)
class Method:
    """How the code of a tap is learned.

    Attributes:
        spans: Each teacher's channels -> the stacked channels that each link of the chain adds.
        learner: Moments of a link's input, each teacher's channels and C -> what trains the link.
    """

    spans: Callable[[Sequence[int]], tuple[int, ...]]
    learner: Callable[[Moments, Sequence[int], int], LinkLearner]


METHODS = {
    "direct": Method(all_at_once, lambda moments, _, width: WhitenedAutoEncoder(moments, width)),
    "incremental": Method(one_by_one, lambda moments, _, width: IsometricAutoEncoder(moments, width)),
    "common_features": Method(all_at_once, CommonFeatureLearner),
}
"""How codes are learned, by their name in the config."""

__all__ = [
    "METHODS",
    "Amalgamation",
    "AutoEncoder",
    "CommonSpace",
    "IsometricAutoEncoder",
    "LabelSets",
    "LinkLearner",
    "Method",
    "WhitenedAutoEncoder",
]
