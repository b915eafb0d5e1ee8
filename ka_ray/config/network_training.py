"""The options of training a whole network end to end: of joint learning, and of a teacher's training."""

from typing import Literal

from pydantic import Field

from ka_ray.config.base import Section
from ka_ray.config.ranges import Positive, PositiveOrZero


class NetworkTrainingConfig(Section):
    """What the sections `joint` and `training` share beyond the options that every stage of training has."""

    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="The learning rate of a block is multiplied by this once for each block between it and "
        "the scores, so that layers close to the image change less. 1: the same rate everywhere.",
    )
    warmup: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of all steps during which the learning rate rises to its peak; 0: none.",
    )
    weight_decay: PositiveOrZero = Field(
        0.0, description="Weight decay of AdamW; biases and norms are not decayed."
    )
    batch_norms: Literal["train", "frozen"] = Field(
        "train",
        description="frozen: batch norms normalise by their running statistics, which stay as they are; "
        "their weights and biases learn in both cases. In `joint`, null: train, or frozen behind a start.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, such as 0.999; the averaged "
        "weights are the result. null: no average.",
    )
    clip_norm: Positive | None = Field(
        None,
        description="Largest norm of the gradient of all weights together; a larger one is scaled down to "
        "it. null: no limit.",
    )
    amp: Literal["none", "bf16", "fp16"] = Field(
        "none",
        description="Automatic mixed precision: the number format of most layers, while scores and loss are "
        "float32. fp16 needs a GPU.",
    )
    compile: bool = Field(
        False, description="Compile the network with torch.compile: a slow first step, then faster ones."
    )
