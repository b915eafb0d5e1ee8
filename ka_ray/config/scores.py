"""The `scores` section: how the teachers' scores become the student's targets."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, PositiveFloat, field_validator

from ka_ray.config.base import ExistingPath, Section


class ScoresConfig(Section):
    """How the teachers' scores become the student's targets."""

    rule: Literal["concatenate", "mean", "max", "conditional"] | None = Field(
        None,
        description="How the teachers' scores are combined; null: concatenate them if the label sets are "
        "disjoint, take the mean if they overlap.",
    )
    center: bool = Field(
        False,
        description="Subtract from each teacher's scores of an image their mean over its classes: for "
        "teachers whose scores are higher than those of others for all classes.",
    )
    views: tuple[Literal["flip", "shift"], ...] = Field(
        (), description="Views of an image over which each teacher's scores are averaged: flip, shift."
    )
    shift: int = Field(
        2, ge=1, description="Pixels that the view `shift` moves the image up, down, left and right."
    )

    gate: Literal["none", "self", "hints", "auto"] = Field(
        "auto",
        description="Which teacher's classes an image shows. none: the teacher with the higher scores "
        "decides; hints: a gate that is learned from images whose owner is known; self: one that teaches "
        "itself, from images that one teacher claims clearly; auto: hints, if there are "
        "100 of each teacher and cross-validation says that the gate helps, otherwise none.",
    )
    hints: dict[str, ExistingPath] = Field(
        default_factory=dict,
        description="Teacher -> folder, or list of image files, that show its classes, for `gate`. They are "
        "no class labels, and the student does not learn from them.",
    )

    shares: dict[str, PositiveFloat] = Field(
        default_factory=dict,
        description="Teacher -> its share of the images, for `gate: self`, as numbers in proportion; empty: "
        "all own equally many. Wrong shares do more harm than this gate does good.",
    )

    def check_owners(self, teachers: Collection[str], named: Collection[str], known: bool) -> None:
        """Check the names of teachers as owners of images, and that `gate: hints` has any.

        Args:
            teachers: Names of the teachers.
            named: Owners that the `images` section names.
            known: Whether it names owners, or a column of them.

        Raises:
            ValueError: A name is none of a teacher, or something is missing.
        """
        if self.gate == "hints" and not (self.hints or known):
            raise ValueError("scores.gate: hints, but no owners are known; give scores.hints or images.owner")
        unknown = sorted({*self.hints, *self.shares, *named} - {*teachers})
        if unknown:
            raise ValueError(f"owners of images: no teacher {', '.join(unknown)}; there are {list(teachers)}")
        if self.shares and len(self.shares) < len(teachers):
            raise ValueError(f"scores.shares: needs every teacher of {list(teachers)}, or none")

    @property
    def gated(self) -> bool:
        """Whether scores go through a gate; `auto` counts once it is resolved."""
        return self.gate in ("self", "hints")

    @field_validator("views", mode="before")
    @classmethod
    def _single_view_to_tuple(cls, views: Any) -> Any:
        return (views,) if isinstance(views, str) else () if views is None else views
