"""The `teachers` section: network, weights, classes and preprocessing of each teacher."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ka_ray.config.base import ClassNames, ExistingPath, Section
from ka_ray.config.preprocessing import Preprocessing


class Augmentation(Section):
    """Label-preserving views of an image, drawn again in every epoch."""

    flip: bool = Field(False, description="Mirror left-right with probability 1/2.")
    shift: int = Field(0, ge=0, description="Shift by up to this many pixels in each direction.")

    @property
    def on(self) -> bool:
        """Whether a view can differ from the image itself."""
        return self.flip or self.shift > 0


class TeachingConfig(Section):
    """How a teacher is trained on labelled images (cross-entropy, AdamW, one-cycle learning rate)."""

    epochs: int = Field(10, ge=1, description="Number of passes over the images.")
    batch_size: int = Field(128, ge=1, description="Images per step, over all workers together.")
    learning_rate: float = Field(5e-3, gt=0, description="Peak of the one-cycle schedule.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay of AdamW.")
    augment: Augmentation = Field(Augmentation(), description="Views of the images that it learns from.")


class TeacherConfig(Section):
    """One trained classifier. Give `checkpoint`, or `training` to train it at the start of the run."""

    name: str = Field(pattern=r"^[A-Za-z0-9_\-]+$", description="Unique among the teachers.")
    network: str = Field(description="plain, a torchvision model name, or package.module:factory")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the network.")
    classes: ClassNames = Field(
        min_length=2, description="In the order of the scores: a list, or a file: one name per line, or JSON."
    )
    checkpoint: ExistingPath | None = Field(None, description=".safetensors, or .pt / .pth with a state dict")
    output: str | int | None = Field(
        None,
        description="For a network that returns several outputs, which one is the scores: its name, or its "
        "position from 0; null: the one named `logits`, or the only one with a score per class.",
    )
    final_activation: Literal["none", "softmax", "log_softmax", "sigmoid"] | None = Field(
        None,
        description="What the network ends in; it is undone, because teachers are compared by the scores "
        "before it. null: nothing, but refused if a few images show the opposite; none: nothing, for sure.",
    )
    preprocessing: Preprocessing = Field(
        Preprocessing(), description="The images that the network was trained with."
    )
    training: TeachingConfig | None = Field(None, description="null: the weights come from `checkpoint`.")

    @model_validator(mode="after")
    def _one_source_of_weights(self) -> "TeacherConfig":
        if self.checkpoint is not None and self.training is not None:
            raise ValueError(f"teacher {self.name}: give `checkpoint` or `training`, not both")
        return self
