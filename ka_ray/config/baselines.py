"""The `baselines` section: how `ka-ray compare` trains the students that amalgamation is compared with."""

from typing import Literal

from pydantic import Field

from ka_ray.config.base import Section
from ka_ray.config.joint import JointConfig
from ka_ray.config.ranges import Count, Positive, Rate
from ka_ray.config.teachers import Augmentation


class ScratchConfig(Section):
    """How training from labels differs from the config's `joint` section; null: the value from `joint`."""

    batch_size: Count | None = Field(None, description="Images per step.")
    learning_rate: Rate | None = Field(None, description="Peak of the one-cycle schedule.")
    augment: Augmentation | None = Field(None, description="Random views of the training images.")

    def apply_to(self, joint: JointConfig, images: int) -> JointConfig:
        """Return a copy of the `joint` section with the changes for a baseline.

        Args:
            joint: The `joint` section of the run's config.
            images: The number of images that the baseline's student processes, counting repeats.
        """
        given = {key: getattr(self, key) for key in type(self).model_fields}
        changes = {key: value for key, value in given.items() if value is not None}
        return joint.model_copy(update=changes | {"images": images})


class DistillConfig(ScratchConfig):
    """How distillation differs from the config's `joint` section; null: the value from `joint`."""

    loss: Literal["mse", "kl"] | None = Field(None, description="Loss between scores.")
    temperature: Positive | None = Field(None, description="Temperature of both distributions in `kl`.")


class BaselinesConfig(Section):
    """How `ka-ray compare` trains the baselines. They process as many images as the amalgamated student."""

    distill: DistillConfig = Field(
        DistillConfig(), description="Learns from the scores only, without codes and layers."
    )
    scratch: ScratchConfig = Field(ScratchConfig(), description="Learns from labels by cross-entropy.")
