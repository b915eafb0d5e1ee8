"""The `scores` section: how the teachers' scores become the student's targets."""

from typing import Any, Literal

from pydantic import Field, field_validator

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
        "none",
        description="Which teacher's classes an image shows. none: the teacher with the higher scores "
        "decides; hints: a gate that is learned from images whose owner is known; self: one that teaches "
        "itself from images that are clear; auto: the one that helps, if any does.",
    )
    hints: dict[str, ExistingPath] = Field(
        default_factory=dict,
        description="Teacher -> folder, or list of image files, that show its classes, for `gate`. They are "
        "no class labels, and the student does not learn from them.",
    )

    @property
    def gates(self) -> tuple[str, ...]:
        """The gates that are learned."""
        return ("self", "hints") if self.gate == "auto" else () if self.gate == "none" else (self.gate,)

    @field_validator("views", mode="before")
    @classmethod
    def _single_view_to_tuple(cls, views: Any) -> Any:
        return (views,) if isinstance(views, str) else () if views is None else views
