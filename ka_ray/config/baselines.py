"""The `baselines` section: how `ka-ray compare` learns the students to compare with."""

from typing import Literal

from pydantic import Field

from ka_ray.config.base import Section
from ka_ray.config.stages import JointConfig
from ka_ray.config.teachers import Augmentation


class ScratchConfig(Section):
    """What `ka-ray compare` changes of `joint` for a baseline; null keeps the value of `joint`."""

    batch_size: int | None = Field(None, ge=1, description="Images per step.")
    learning_rate: float | None = Field(None, gt=0, description="Peak of the one-cycle schedule.")
    augment: Augmentation | None = Field(None, description="Augmentation.")

    def of(self, joint: JointConfig, images: int) -> JointConfig:
        """Return the `joint` section of a baseline.

        Args:
            joint: The section of the run.
            images: The number of images that the baseline's student sees.
        """
        given = {key: getattr(self, key) for key in type(self).model_fields}
        changes = {key: value for key, value in given.items() if value is not None}
        return joint.model_copy(update=changes | {"images": images})


class DistillConfig(ScratchConfig):
    """What `ka-ray compare` changes of `joint` for distillation; null keeps the value of `joint`."""

    loss: Literal["mse", "kl"] | None = Field(None, description="Loss between scores.")
    temperature: float | None = Field(None, gt=0, description="Temperature of both distributions in `kl`.")


class BaselinesConfig(Section):
    """How `ka-ray compare` learns the baselines. They see as many images as the amalgamated student."""

    distill: DistillConfig = Field(
        DistillConfig(), description="Learns from the scores only, from random weights."
    )
    scratch: ScratchConfig = Field(
        ScratchConfig(), description="Learns from labels by cross-entropy, from random weights."
    )
