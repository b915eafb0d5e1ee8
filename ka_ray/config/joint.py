"""The section `joint`: how the student is learned end to end."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ka_ray.config.base import drop_nulls
from ka_ray.config.network_training import NetworkTrainingConfig
from ka_ray.config.ranges import Count, CountOrZero, Positive, Rate
from ka_ray.config.shorthands import accept_null
from ka_ray.config.stages import TrainingConfig
from ka_ray.config.teachers import Augmentation

BEHIND_START = {"epochs": 3, "batch_size": 32, "loss": "kl", "keep": "best", "batch_norms": "frozen"}
"""Defaults of joint learning behind a start: a few epochs, of which the best one is kept.

Frozen batch norms were as good as trained ones, faster, and do not depend on the number of workers.
"""

CHOSEN_KEYS = (*BEHIND_START, "learning_rate")
"""Keys that may be null: their values depend on the start, the student's network and the number of images."""


class JointConfig(NetworkTrainingConfig, TrainingConfig):
    """Joint learning: the student, with its adapters folded in, learns the combined scores end to end."""

    model_config = ConfigDict(json_schema_extra=accept_null(*CHOSEN_KEYS))

    epochs: CountOrZero = Field(
        10,
        description="Number of passes over the images; 0: no joint learning. null: 10, or behind a start 3, "
        "and up to 30 if the images are so few that 3 are less than 300 steps.",
    )
    learning_rate: Rate = Field(
        1e-3,
        description="Peak of the one-cycle schedule. null: 0.001, or 0.0001 behind a start if the student's "
        "network has layer norms, as transformers have; with `keep: best`, if no epoch is closer to the "
        "ensemble than the start, it begins again at a third of the rate, at most twice.",
    )
    batch_size: Count = Field(
        64,
        description="Images per step, over all workers together; null: 64, or 32 behind a start.",
    )
    beta2: float = Field(
        0.999, ge=0, lt=1, description="Decay rate of Adam's running mean of squared gradients."
    )
    loss: Literal["mse", "kl"] = Field(
        "mse",
        description="Loss between scores; `scores.rule: conditional` always uses kl. null: mse, or kl behind "
        "a start.",
    )
    keep: Literal["best", "last"] = Field(
        "last",
        description="best: of the start and the epochs, keep the student that follows the ensemble best "
        "on held-out images; last: the student of the last epoch. null: last, or best behind a start.",
    )
    temperature: Positive = Field(
        2.0, description="Temperature of both distributions in `kl`; unused by `mse`."
    )
    augment: Augmentation = Field(
        Augmentation(), description="Augmentation; the teachers score the same view as the student."
    )
    images: Count | None = Field(
        None, description="Stop after this many images instead of after `epochs`; null: use `epochs`."
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, given: Any) -> Any:
        """Leave these choices to the run, where they are null."""
        return drop_nulls(given, CHOSEN_KEYS)

    @property
    def any_steps(self) -> bool:
        """Whether there is joint learning at all."""
        return self.epochs > 0 or self.images is not None
