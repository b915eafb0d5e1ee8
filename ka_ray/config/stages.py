"""The sections of the stages of a run before joint learning: extraction, scores, codes, layers."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from ka_ray.config.base import Section, drop_nulls
from ka_ray.config.ranges import Count, Positive, PositiveOrZero, Rate
from ka_ray.config.shorthands import accept_null


class ExtractConfig(Section):
    """How the teachers turn images into stacked features."""

    images: Count | None = Field(
        10_000,
        description="Number of images whose features are stored; for the others, only scores are stored. "
        "null: all images.",
    )
    batch_size: Count | None = Field(
        None,
        description="Images per call of a teacher; null: 64, or 256 on a GPU, which few images do not fill.",
    )
    amp: Literal["none", "bf16", "fp16"] = Field(
        "none",
        description="Automatic mixed precision of teachers on a GPU: the number format of most layers. It is "
        "faster for large networks, but rounds features and scores. On a CPU they run in float32.",
    )
    actors_per_teacher: Count = Field(
        1,
        description="Copies of each teacher that run in parallel. Students are evaluated by the same number "
        "of actors, or fewer if the cluster has no room.",
    )
    reducers: Count = Field(
        1,
        description="Actors that sum over the stacked features of all images, for `spectrum`, `tune` and "
        "`codes.widths.energy`. Each gets the resources of a teacher.",
    )
    object_store_gib: float | None = Field(
        None,
        ge=0.001,
        le=1e9,
        description="Approximate limit of the data that waits between actors; null: Ray Data's own limit.",
    )
    shard_mib: float = Field(
        64,
        ge=0.001,
        le=1e6,
        description="Approximate size of a file of features; a lost worker loses at most one file.",
    )

    def images_per_call(self, on_gpu: bool) -> int:
        """Return the number of images per call of a teacher.

        Args:
            on_gpu: Whether the teacher runs on a GPU.
        """
        return self.batch_size or (256 if on_gpu else 64)


class TrainingConfig(Section):
    """One stage of training: Adam with a one-cycle learning rate."""

    epochs: Count = Field(6, description="Number of passes over the stored images.")
    batch_size: Count = Field(64, description="Images per step, over all workers together.")
    learning_rate: Rate = Field(1e-3, description="Peak of the one-cycle schedule.")
    beta2: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="Decay rate of Adam's running mean of squared gradients. A lower value forgets the large "
        "gradients of the first steps sooner.",
    )


class LikeTeacher(Section):
    """Every code is as wide as one teacher's features at the same tap."""

    like: str = Field(description="Name of the teacher.")


class EnergyWidths(Section):
    """Every code is as wide as needed to keep a share of the stacked features' variance."""

    energy: float = Field(gt=0, le=1, description="Share of the variance to keep.")


def _kind_of_widths(given: Any) -> str:
    """Return the tag of the alternative of :data:`Widths` that a value is meant to be."""
    if isinstance(given, LikeTeacher | EnergyWidths):
        return next(iter(type(given).model_fields))
    rules = [rule for rule in ("like", "energy") if isinstance(given, dict) and rule in given]
    return rules[0] if rules else "taps"  # any other dict gives a width per tap


Widths = Annotated[
    Annotated[LikeTeacher, Tag("like")]
    | Annotated[EnergyWidths, Tag("energy")]
    | Annotated[dict[str, Count], Tag("taps")],
    Discriminator(_kind_of_widths),
]


class CodesConfig(TrainingConfig):
    """The auto-encoders, which compress the stacked features into codes."""

    model_config = ConfigDict(json_schema_extra=accept_null("solver"))

    method: Literal["direct", "incremental", "common_features"] = Field(
        "direct",
        description="direct: one auto-encoder per tap for all teachers; incremental: one for the first two, "
        "and one more for each further teacher; common_features: a space that all teachers share.",
    )
    solver: Literal["sgd", "exact"] = Field(
        "exact",
        description="exact: computed from sums over one pass over the images, without epochs or "
        "learning rate. null: exact, or sgd for common_features, which has no closed form.",
    )
    basis: Literal["principal", "channels"] = Field(
        "principal",
        description="Used by `solver: exact`. principal: the subspace that loses least variance; channels: "
        "some of the stacked channels themselves, so that an activation acts on the code as on "
        "the teachers' features.",
    )
    widths: Widths | None = Field(
        None,
        description="{like: TEACHER}, {energy: share of the variance} or {TAP: channels, ...}; null: as "
        "many channels as the student's network has at the tap.",
    )
    positions_per_image: Count = Field(
        16,
        description="Positions drawn at random from each feature map: by `sgd` in every epoch, by "
        "`exact` once.",
    )
    learning_rate: Rate = Field(2e-2, description="Peak of the one-cycle schedule.")

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, given: Any) -> Any:
        return drop_nulls(given, ("solver",))

    @model_validator(mode="after")
    def _can_be_computed(self) -> "CodesConfig":
        if "solver" not in self.model_fields_set and self.method == "common_features":
            self.__dict__["solver"] = "sgd"  # it stays unset, so that another method has its own default
        if self.basis == "channels" and self.solver != "exact":
            raise ValueError("basis: channels are chosen, not trained; set solver: exact")
        if self.method == "common_features" and self.solver == "exact":
            raise ValueError("solver: common_features has no closed form; set solver: sgd")
        return self


class LayersConfig(TrainingConfig):
    """Layer-wise learning: each student layer learns to map the code of one tap to that of the next."""

    behind_start: bool = Field(
        False,
        description="Whether codes and layers are also learned behind a start that is not random; layers "
        "that end worse than they began are put back.",
    )

    solver: Literal["sgd", "least_squares"] = Field(
        "sgd",
        description="least_squares: every layer that is linear in its weights is computed, without epochs.",
    )
    inputs: Literal["codes", "student"] = Field(
        "codes",
        description="Used by `least_squares`. codes: each layer gets the code of the tap before it, all "
        "layers in one pass; student: layer after layer, each gets the student's own features and "
        "compensates earlier errors.",
    )
    positions_per_image: Count = Field(
        64,
        description="Used by `least_squares`: largest number of positions taken from each feature map.",
    )
    ridge: Positive | None = Field(
        None,
        description="Used by `least_squares`: strength of ridge regression, relative to a layer's mean input "
        "variance; null: chosen layer by layer on held-out images.",
    )
    max_gram_gib: PositiveOrZero = Field(
        4,
        description="Used by `least_squares`: a layer with a larger Gram matrix is solved by conjugate "
        "gradients, which need many passes over the images instead of the matrix.",
    )
    learning_rate: Rate = Field(5e-3, description="Peak of the one-cycle schedule.")

    @model_validator(mode="after")
    def _can_be_computed(self) -> "LayersConfig":
        if self.inputs == "student" and self.solver != "least_squares":
            raise ValueError(
                "inputs: with solver sgd all layers learn at once from codes; set solver: least_squares"
            )
        return self
