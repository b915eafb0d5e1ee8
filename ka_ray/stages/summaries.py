"""What stages write about themselves: ``stages/<stage>.json`` in the output folder, as typed models."""

from pydantic import BaseModel, ConfigDict

from ka_ray.reports.sections import Code, Layer, StageName
from ka_ray.reports.summaries import Summary
from ka_ray.training.fit import Progress


class StageSummary(Summary):
    """A stage that has finished, such as joint learning.

    Attributes:
        history: One record per epoch; empty if the stage had nothing to learn.
        seconds: How long the stage took.
    """

    history: list[Progress]
    seconds: float = 0.0

    @property
    def images_seen(self) -> int:
        """How many images the stage processed, counting repeats."""
        return self.history[-1].images if self.history else 0


class CodeShape(BaseModel):
    """What the auto-encoders of a tap depend on.

    Attributes:
        channels: The channels of each teacher.
        paths: The module path in each teacher.
        space: The height and width to which all features are resized; empty for vectors.
        width: The channels of the code.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: list[int]
    paths: list[str]
    space: list[int]
    width: int


class LinkSummary(BaseModel):
    """The links of the taps' chains of auto-encoders, counted per tap.

    Attributes:
        reused: The number of links that were copied from an extended run.
        trained: The number of links that were trained or computed.
        seconds: How long each link took, including those that were reused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reused: int
    trained: int
    seconds: list[float]


class CodesSummary(StageSummary):
    """The stage that learns the codes.

    Attributes:
        taps: Tap -> the errors of its code.
        shapes: Tap -> what its auto-encoders depend on.
        links: The links of the chains.
        teachers: Name -> digest of the checkpoint of each teacher.
    """

    taps: dict[str, Code]
    shapes: dict[str, CodeShape]
    links: LinkSummary
    teachers: dict[str, str]


class LayersSummary(StageSummary):
    """The stage that learns the layers.

    Attributes:
        taps: Tap -> the error of the layer that leads to it.
    """

    taps: dict[str, Layer]


SUMMARIES: dict[StageName, type[StageSummary]] = {
    "codes": CodesSummary,
    "layers": LayersSummary,
    "joint": StageSummary,
}
"""The summary of each stage, by the stage's name."""
