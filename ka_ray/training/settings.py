"""Settings of the training loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ka_ray.numerics.mixed_precision import Precision
from ka_ray.training.batches import Batches


@dataclass(frozen=True)
class FitSettings:
    """Settings of the training loop.

    The optimizer is AdamW (Loshchilov and Hutter, ICLR 2019). The learning rate rises linearly to its peak
    and then falls along a cosine.

    Attributes:
        stage: Name of the stage, for progress reports and error messages.
        epochs: Number of epochs; ignored if ``images`` is set.
        learning_rate: Peak of the learning rate.
        weight_decay: Decoupled weight decay of AdamW. Each step shrinks the weights by the factor
            ``1 - learning rate * weight_decay``.
        beta2: Decay rate of AdamW's running mean of squared gradients, in [0, 1).
        images: Number of images to train on, counting repeats, rounded down to whole batches, but at least
            one batch. None: train for ``epochs``.
        checkpoint: File that is written after each epoch but the last one; all ranks must reach it. If it
            exists, training resumes from it, with the same result as uninterrupted training. None: no file.
        unused_parameters: Whether a step may leave out some parameters, such as those of an auxiliary head.
        warmup: Fraction of all steps during which the learning rate rises, in [0, 1); 0: none.
        layer_decay: Factor of the learning rate per block between a parameter and the scores, in (0, 1]; see
            :func:`ka_ray.training.blocks.find_blocks`. 1: the same rate for all parameters.
        decay_biases: Whether weight decay also shrinks vectors: biases, weights of norms, scales of layers.
        batch_norms: ``train``: batch norms normalise by their batch and update their running statistics.
            ``frozen``: they normalise by the running statistics, which stay as they are.
        clip_norm: Largest Euclidean norm of the gradient of all parameters together; a larger gradient is
            scaled down to it. None: no limit.
        amp: Number format in which the learner runs its network, for which this loop scales the loss of fp16.
    """

    stage: str
    epochs: int
    learning_rate: float
    weight_decay: float = 0.0
    beta2: float = 0.999
    images: int | None = None
    checkpoint: Path | None = None
    unused_parameters: bool = False
    warmup: float = 0.1
    layer_decay: float = 1.0
    decay_biases: bool = True
    batch_norms: Literal["train", "frozen"] = "train"
    clip_norm: float | None = None
    amp: Precision = "none"

    def steps(self, batches: Batches) -> int:
        """Return the number of optimizer steps over all epochs."""
        if self.images is None:
            return self.epochs * batches.steps_per_epoch
        return max(1, self.images // batches.batch_size)
