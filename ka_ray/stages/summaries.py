"""Typed summaries of the stages, the content of ``stages/<stage>.json`` in the output folder."""

from pydantic import BaseModel, ConfigDict

from ka_ray.reports.choices import StartCandidate, StudentChoice
from ka_ray.reports.sections import CodeQuality, LayerQuality, StageName
from ka_ray.reports.summaries import Summary
from ka_ray.training.fit import Progress


class StageSummary(Summary):
    """Summary of a finished stage, such as joint learning.

    Attributes:
        history: One record per epoch; empty if the stage had nothing to train.
        seconds: Seconds that the stage took.
    """

    history: list[Progress]
    seconds: float = 0.0

    @property
    def images_seen(self) -> int:
        """Number of images that the stage processed, counting repeats."""
        return self.history[-1].images if self.history else 0


class CodeShape(BaseModel):
    """Shapes that the auto-encoders of a tap depend on.

    Attributes:
        channels: Number of channels of each teacher.
        paths: Dotted path of the tapped module in each teacher.
        space: Height and width in positions to which all features are resized; empty for vectors.
        width: Number of code channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: list[int]
    paths: list[str]
    space: list[int]
    width: int


class LinkSummary(BaseModel):
    """Links of the taps' chains of auto-encoders.

    Attributes:
        reused: Number of links per chain that were copied from the extended run.
        trained: Number of links per chain that were trained or computed.
        seconds: Seconds per link over all taps, in the run that trained or computed it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reused: int
    trained: int
    seconds: list[float]


class CodesSummary(StageSummary):
    """Summary of the stage `codes`.

    Attributes:
        taps: Tap name -> errors of its code.
        shapes: Tap name -> shapes that its auto-encoders depend on.
        links: Links of the chains.
        teachers: Name of each teacher -> SHA-256 digest of its checkpoint.
    """

    taps: dict[str, CodeQuality]
    shapes: dict[str, CodeShape]
    links: LinkSummary
    teachers: dict[str, str]


class LayersSummary(StageSummary):
    """Summary of the stage `layers`.

    Attributes:
        taps: Tap name -> error of the layer that leads to it.
    """

    taps: dict[str, LayerQuality]


class StartSummary(StageSummary):
    """Summary of the stage `start`.

    Attributes:
        candidates: The starts that were built and judged.
        skipped: Name of a start that does not apply -> why.
        chosen: Name of the best one, from which the student starts.
        random: Names of the weights that it does not have, and that are random.
    """

    candidates: list[StartCandidate]
    skipped: dict[str, str]
    chosen: str
    random: list[str]


class JointSummary(StageSummary):
    """Summary of the stage `joint`.

    Attributes:
        choice: The choice between the start and the epochs; None if the last epoch is always kept.
    """

    choice: StudentChoice | None = None


SUMMARIES: dict[StageName, type[StageSummary]] = {
    "start": StartSummary,
    "codes": CodesSummary,
    "layers": LayersSummary,
    "joint": JointSummary,
}
"""Name of each stage -> type of its summary."""
