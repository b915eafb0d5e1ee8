"""The `scores` section: how the teachers' scores become the student's targets."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field, field_validator

from ka_ray.config.base import ExistingPath, Section
from ka_ray.config.descriptive import DESCRIPTIVE, DescriptiveConfig
from ka_ray.config.ranges import Pixels, Positive
from ka_ray.config.shorthands import accept_one
from ka_ray.config.sources import NOBODY


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
        (),
        description="Views of an image over which each teacher's scores are averaged: flip, shift.",
        json_schema_extra=accept_one,
    )
    shift: Pixels = Field(
        2, description="Pixels that the view `shift` moves the image up, down, left and right."
    )

    gate: Literal["none", "owners", "hints", "self", "extended", "auto"] = Field(
        "auto",
        description="Which teacher's classes an image shows. none: the teacher with the higher scores "
        "decides; owners: the known owner, and for other images the scores; hints: the known owner, and for "
        "other images a gate that is learned from all known owners; self: the known owner, and a gate that "
        "learns from what the ensemble says of all images; extended: the known owner, and the gate of the "
        "run that `extend` names; auto: hints, if cross-validation says that the gate helps, by "
        "100 images of each teacher, or by 30 if it helps a lot; with fewer than 100, extended, if there is "
        "one; otherwise owners.",
    )
    hints: dict[str, ExistingPath] = Field(
        default_factory=dict,
        description="Teacher, or nobody -> folder, or list of image files, that show its classes, for "
        "`gate`. They are no class labels, and the student does not learn from them.",
    )

    shares: dict[str, Positive] = Field(
        default_factory=dict,
        description="Teacher -> its share of the images, for `gate: self`, as numbers in proportion; empty: "
        "as the scores have them. Wrong shares do more harm than this gate does good.",
    )
    descriptive: DescriptiveConfig | None = Field(
        None,
        description="A trained network that is nobody's teacher, such as one of ImageNet: what it sees of an "
        "image joins what a gate that is learned (hints, self) sees of the teachers'. null: none.",
    )

    def check_owners(self, teachers: Collection[str], named: Collection[str], column: bool) -> None:
        """Check the names of owners of images, and that `gate: hints` can have images of every teacher.

        Args:
            teachers: Names of the teachers.
            named: Owners that the `images` section names.
            column: Whether it names a column of owners, which is not read here.

        Raises:
            ValueError: A name is none of a teacher or nobody, or something is missing.
        """
        without = [t for t in teachers if t not in {*self.hints, *named}]
        if self.gate == "hints" and without and not column:
            raise ValueError(
                f"scores.gate: hints, but no image is known to belong to {', '.join(without)}; give "
                "scores.hints or images.owner"
            )
        if self.gate == "owners" and not (named or column):
            raise ValueError("scores.gate: owners, but none are known; give images.owner or owner_column")
        if NOBODY in teachers:
            raise ValueError(
                f"teachers: none may be called {NOBODY}, the owner of images of no teacher; `name` gives "
                "another"
            )
        if self.descriptive is not None and DESCRIPTIVE in teachers:
            raise ValueError(f"scores.descriptive: a teacher is called {DESCRIPTIVE}; give it another name")
        unknown = sorted({*self.hints, *named} - {*teachers, NOBODY} | self.shares.keys() - {*teachers})
        if unknown:
            raise ValueError(
                f"owners of images: no teacher {', '.join(unknown)}; there are {list(teachers)}, and "
                f"{NOBODY}, who has no share"
            )
        if self.shares and len(self.shares) < len(teachers):
            raise ValueError(f"scores.shares: needs every teacher of {list(teachers)}, or none")

    def list_gates(self, known: bool, extends: bool) -> tuple[str, ...]:
        """Return the gates to prepare; `auto` chooses among several.

        Args:
            known: Whether the owners of some images that the student learns from are known.
            extends: Whether the run adds teachers to a finished run, which may have a gate.
        """
        if self.gate != "auto":
            return () if self.gate == "none" else (self.gate,)
        learned = (("owners",) if known else ()) + (("hints",) if known or self.hints else ())
        # A rule says how scores are combined, so that `auto` does not look for a gate.
        return (*learned, "extended") if extends and self.rule is None else learned

    @property
    def gated(self) -> bool:
        """Whether scores go through a gate; `auto` counts once it is resolved."""
        return self.gate in ("owners", "hints", "self", "extended")

    @field_validator("views", mode="before")
    @classmethod
    def _single_view_to_tuple(cls, views: Any) -> Any:
        return (views,) if isinstance(views, str) else () if views is None else views
