"""What the training loop reports: how far a stage is, and its losses."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Progress of a stage.

    Attributes:
        stage: Name of the stage.
        epoch: Number of the current epoch, from 1.
        epochs: Total number of epochs.
        step: Number of steps finished in this epoch.
        steps: Number of steps of this epoch.
        images: Number of images processed since the start of the stage, over all ranks, counting repeats.
        seconds: Seconds since the start of the stage, including those of earlier attempts.
        losses: Name -> mean loss over the steps of this epoch. Within an epoch it is rank 0's mean, at the
            end of the epoch the mean over all ranks.
        waited: How many of the seconds this rank waited for batches to be read.
        attempt: Number of the attempt, from 1, of a stage that may begin again at a lower learning rate;
            images and seconds include those of the attempts before.
    """

    stage: str
    epoch: int
    epochs: int
    step: int
    steps: int
    images: int
    seconds: float
    losses: dict[str, float]
    waited: float = 0.0
    attempt: int = 1

    @property
    def epoch_ended(self) -> bool:
        """Whether this is the report at the end of its epoch."""
        return self.step == self.steps


ProgressCallback = Callable[[Progress], None]
"""Function that is called with each progress report."""
