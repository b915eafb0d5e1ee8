"""The `student` section, and where its features are read: the taps."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ka_ray.config.base import ExistingPath, Section, drop_nulls
from ka_ray.config.preprocessing import Preprocessing
from ka_ray.config.ranges import Count, Name, Text
from ka_ray.config.shorthands import accept_null
from ka_ray.config.stages import EnergyWidths

STUDENT = "student"
"""The name of the student in `taps`, beside those of the teachers."""


TapName = Name
TapPath = Annotated[
    Annotated[str, Tag("path")] | Annotated[dict[str, str], Tag("paths")],
    # Choose the alternative by type, so that an error names only what is wrong with that one.
    Discriminator(lambda v: "paths" if isinstance(v, dict) else "path"),
]
"""Where a tap is: one module path for all networks, or one per teacher and, if needed, for the student."""


class StartConfig(Section):
    """Start the student from the weights of one network; give one of the two keys."""

    teacher: str | None = Field(None, description="Name of a teacher.")
    checkpoint: ExistingPath | None = Field(None, description="A checkpoint of the student's network.")

    @model_validator(mode="after")
    def _has_one_source(self) -> "StartConfig":
        if (self.teacher is None) == (self.checkpoint is None):
            raise ValueError("give either `teacher` or `checkpoint`")
        return self


Start = Annotated[
    Annotated[Literal["auto", "random", "average", "exact"], Tag("name")]
    | Annotated[StartConfig, Tag("source")],
    Discriminator(lambda given: "name" if isinstance(given, str) else "source"),
]
"""Where the student's weights come from before anything is learned."""


def _kind_of_widths(given: Any) -> str:
    """Return the tag of the alternative of :data:`LayerWidths` that a value is meant to be."""
    if isinstance(given, EnergyWidths) or (isinstance(given, dict) and "energy" in given):
        return "energy"
    return "layers" if isinstance(given, dict) else "factor"


LayerWidths = Annotated[
    Annotated[Annotated[float, Field(ge=0.001, le=1000)], Tag("factor")]
    | Annotated[EnergyWidths, Tag("energy")]
    | Annotated[dict[str, Count], Tag("layers")],
    Discriminator(_kind_of_widths),
]
"""Widths of the student's layers: a multiple of its own, a share of the variance, or channels by layer."""


class StudentConfig(Section):
    """The one network over all classes."""

    model_config = ConfigDict(json_schema_extra=accept_null("start"))

    network: Text | None = Field(
        None,
        description="plain, a torchvision model name, or package.module:factory; null: the first teacher's.",
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the network.")
    preprocessing: Preprocessing | None = Field(None, description="null: the first teacher's")
    widths: LayerWidths | None = Field(
        None,
        description="Numbers of channels: a multiple of the network's own, such as 0.5; {energy: share of "
        "the variance of the stacked teachers' features}; or {path of a layer: channels, ...}. Layers whose "
        "outputs are added have one width. null: the network's own.",
    )
    start: Start = Field(
        "auto",
        description="Weights that it starts from: auto, the start that follows the teachers best on "
        "held-out images; average, the mean of the teachers' weights; exact, computed layer by layer; "
        "{teacher: NAME}; {checkpoint: FILE}; or random. null: auto, or random if the config has "
        "`codes`, `layers`, `extend` or `baseline`.",
    )
    head: Literal["teachers", "ridge"] | None = Field(
        None,
        description="The last layer of the start. teachers: the rows of the teachers' last layers; ridge: "
        "computed by ridge regression to the teachers' scores; null: the better one on held-out images.",
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, given: Any) -> Any:
        """Leave the choice of the start to the config, which depends on its other sections."""
        return drop_nulls(given, ("start",))

    @model_validator(mode="after")
    def _start_has_these_widths(self) -> "StudentConfig":
        if self.widths is not None and self.start == "average":
            raise ValueError(
                "start: the mean of the teachers' weights has their widths, and `widths` gives others; of "
                "the starts, exact solves a student of any widths"
            )
        return self
