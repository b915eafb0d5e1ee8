"""Amalgamate features into codes, and the teachers' scores into the student's targets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ka_ray.amalgamation.autoencoder import (
    AutoEncoder,
    IsometricAutoEncoder,
    LinkLearner,
    WhitenedAutoEncoder,
)
from ka_ray.amalgamation.chain import Amalgamation, direct_spans, incremental_spans
from ka_ray.amalgamation.common_features import CommonFeatureLearner
from ka_ray.amalgamation.label_sets import LabelSets
from ka_ray.numerics.moments import Moments


@dataclass(frozen=True)
class Method:
    """How the code of a tap is learned: by a chain of auto-encoders, each of which is a link.

    Attributes:
        spans: Maps the teachers' channel counts to the number of stacked channels that each link of the chain
            adds.
        learner: Builds the module that trains one link, from the moments of the link's input, the teachers'
            channel counts and the code's width.
    """

    spans: Callable[[Sequence[int]], tuple[int, ...]]
    learner: Callable[[Moments, Sequence[int], int], LinkLearner]


METHODS = {
    "direct": Method(direct_spans, lambda moments, _, width: WhitenedAutoEncoder(moments, width)),
    # The next link encodes this link's code together with the features of another teacher, so both must have
    # the same units. Only the code of an isometric auto-encoder has the units of the features.
    "incremental": Method(incremental_spans, lambda moments, _, width: IsometricAutoEncoder(moments, width)),
    "common_features": Method(direct_spans, CommonFeatureLearner),
}
"""Value of ``codes.method`` in the config -> how the codes are learned."""

__all__ = [
    "METHODS",
    "Amalgamation",
    "AutoEncoder",
    "CommonFeatureLearner",
    "IsometricAutoEncoder",
    "LabelSets",
    "LinkLearner",
    "Method",
    "WhitenedAutoEncoder",
]
