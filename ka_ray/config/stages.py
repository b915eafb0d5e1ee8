"""The sections of a run's stages: extraction, scores, codes, layers, joint learning."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from ka_ray.config.base import Section
from ka_ray.config.teachers import Augmentation


class ExtractConfig(Section):
    """How the teachers turn images into stacked features."""

    images: int | None = Field(
        10_000,
        ge=1,
        description="Keep the features of this many images, the scores of the others; null: all.",
    )
    batch_size: int = Field(64, ge=1)
    actors_per_teacher: int = Field(1, ge=1)
    reducers: int = Field(1, ge=1, description="Actors that add up stacked features; shares as a teacher's.")
    object_store_gib: float | None = Field(
        None,
        ge=0.001,
        description="At most about so much waits between the actors; null: what Ray Data takes.",
    )
    shard_mib: float = Field(64, gt=0, description="About what one file of features holds; a loss costs one.")


class TrainingConfig(Section):
    """One stage of training: Adam with a one-cycle learning rate."""

    epochs: int = Field(6, ge=1)
    batch_size: int = Field(64, ge=1, description="Images, over all workers together.")
    learning_rate: float = Field(1e-3, gt=0, description="The peak of the one-cycle schedule.")
    beta2: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Decay rate of Adam's running mean of squared gradients. A lower value forgets the large "
        "gradients of the first steps sooner.",
    )


class LikeTeacher(Section):
    """Every code as wide as this teacher's features at the same tap."""

    like: str


class EnergyWidths(Section):
    """Every code as wide as it must be to keep this share of the stacked features' variance."""

    energy: float = Field(gt=0, le=1)


def _kind_of_widths(given: Any) -> str:
    if isinstance(given, LikeTeacher | EnergyWidths):
        return next(iter(type(given).model_fields))
    rules = [rule for rule in ("like", "energy") if isinstance(given, dict) and rule in given]
    return rules[0] if rules else "taps"


Widths = Annotated[
    Annotated[LikeTeacher, Tag("like")]
    | Annotated[EnergyWidths, Tag("energy")]
    | Annotated[dict[str, PositiveInt], Tag("taps")],
    Discriminator(_kind_of_widths),
]


class ScoresConfig(Section):
    """How the teachers' scores become the student's targets."""

    rule: Literal["concatenate", "mean", "max", "conditional"] | None = Field(
        None, description="null: concatenate disjoint label sets, mean where they overlap"
    )
    center: bool = Field(
        False,
        description="Subtract the mean of a teacher's scores of an image: for teachers of unlike scales.",
    )
    views: tuple[Literal["flip", "shift"], ...] = Field(
        (), description="Average each teacher's scores over these views of an image, too: flip, shift."
    )
    shift: int = Field(2, ge=1, description="Pixels of the view `shift`: up, down, left and right.")

    @field_validator("views", mode="before")
    @classmethod
    def _one_or_more(cls, views: Any) -> Any:
        return (views,) if isinstance(views, str) else () if views is None else views


class CodesConfig(TrainingConfig):
    """The auto-encoders: what is kept of the stacked features."""

    method: Literal["direct", "incremental", "common_features"] = Field(
        "direct",
        description="direct: one auto-encoder a tap over all teachers; incremental: one for the first two, "
        "and one more for each further teacher; common_features: a space that all teachers share",
    )
    solver: Literal["sgd", "exact"] = Field(
        "sgd", description="exact: computed from sums over one pass of the images, without epochs or a rate"
    )
    basis: Literal["principal", "channels"] = Field(
        "principal",
        description="Of an exact code. principal: what loses least; channels: a choice of the stacked "
        "channels themselves, on which an activation keeps its meaning",
    )
    widths: Widths | None = Field(
        None,
        description="{like: TEACHER}, {energy: share of the variance} or {TAP: channels, ...}; null: the "
        "student's own",
    )
    positions_per_image: int = Field(
        16, ge=1, description="Positions drawn at random from each map: by sgd in every epoch, else once."
    )
    learning_rate: float = Field(2e-2, gt=0)

    @model_validator(mode="after")
    def _can_be_computed(self) -> "CodesConfig":
        if self.basis == "channels" and self.solver != "exact":
            raise ValueError("basis: channels are chosen, not trained; set solver: exact")
        if self.method == "common_features" and self.solver == "exact":
            raise ValueError("solver: common_features has no closed form; set solver: sgd")
        return self


class LayersConfig(TrainingConfig):
    """Layer-wise learning: each student layer from the code before it to its own."""

    solver: Literal["sgd", "least_squares"] = Field(
        "sgd",
        description="least_squares: every layer that is linear in its weights is computed, without epochs",
    )
    inputs: Literal["codes", "student"] = Field(
        "codes",
        description="Of least_squares. codes: each layer gets the code before it, all in one pass; student: "
        "layer after layer, each gets what the student gives there, and makes up for its errors",
    )
    positions_per_image: int = Field(
        64, ge=1, description="Of least_squares: at most so many positions of each map count."
    )
    ridge: float | None = Field(
        None,
        gt=0,
        description="Of least_squares, in units of a layer's mean input variance; null: chosen layer by "
        "layer on held-out images.",
    )
    max_gram_gib: float = Field(
        4,
        ge=0,
        description="Of least_squares: a layer with a larger Gram matrix is solved by conjugate gradients, "
        "which take many passes over the images but no such matrix.",
    )
    learning_rate: float = Field(5e-3, gt=0)

    @model_validator(mode="after")
    def _can_be_computed(self) -> "LayersConfig":
        if self.inputs == "student" and self.solver != "least_squares":
            raise ValueError("inputs: by sgd all layers learn at once, from codes; set solver: least_squares")
        return self


class JointConfig(TrainingConfig):
    """Joint learning: the folded student end to end towards the amalgamated scores."""

    epochs: int = Field(10, ge=0, description="0: the student stays as its layers made it.")
    beta2: float = Field(0.999, ge=0, lt=1, description="As in `codes` and `layers`.")
    loss: Literal["mse", "kl"] = Field(
        "mse", description="Of the scores; `scores.rule: conditional` always compares by kl."
    )
    temperature: float = Field(2.0, gt=0, description="Softens both sides of `kl`; unused by `mse`.")
    augment: Augmentation = Field(Augmentation(), description="Teachers score the same augmented view.")
    images: int | None = Field(
        None, ge=1, description="Stop after this many images instead of after whole `epochs`."
    )

    @property
    def any_steps(self) -> bool:
        """Whether there is joint learning at all."""
        return self.epochs > 0 or self.images is not None


class ScratchConfig(Section):
    """What `ka-ray compare` changes of `joint` for a baseline; null: as there."""

    batch_size: int | None = Field(None, ge=1)
    learning_rate: float | None = Field(None, gt=0)
    augment: Augmentation | None = None

    def of(self, joint: JointConfig, images: int) -> JointConfig:
        """Change joint learning into the baseline's, for a number of images."""
        given = {key: getattr(self, key) for key in type(self).model_fields}
        changes = {key: value for key, value in given.items() if value is not None}
        return joint.model_copy(update=changes | {"images": images})


class DistillConfig(ScratchConfig):
    """The same for a baseline that learns from scores."""

    loss: Literal["mse", "kl"] | None = None
    temperature: float | None = Field(None, gt=0)


class BaselinesConfig(Section):
    """How `ka-ray compare` learns the baselines; the number of images is that of the amalgamation."""

    distill: DistillConfig = Field(DistillConfig(), description="By the scores alone, from random weights.")
    scratch: ScratchConfig = Field(ScratchConfig(), description="By labels and cross-entropy.")
