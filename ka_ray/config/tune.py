"""The search for code widths: `ka-ray tune`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ka_ray.config.base import Section

Choices = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class TuneConfig(Section):
    """Which students are tried, and what counts: agreement on held-out images against cost."""

    trials: int = Field(24, ge=1, description="Students tried; by grid at most so many.")
    algorithm: Literal["random", "grid", "optuna"] = Field(
        "random", description="random: of all combinations; grid: all of them; optuna: TPE (an extra)."
    )
    factors: tuple[PositiveFloat, ...] = Field(
        (0.5, 0.75, 1.0, 1.25),
        min_length=1,
        description="Widths to try at a tap, in units of the student's own there.",
    )
    widths: dict[str, Choices] = Field(
        default_factory=dict, description="tap: widths to try there, instead of by `factors`."
    )
    ridges: tuple[PositiveFloat, ...] = Field(
        (),
        description="Ridges to try, in units of a layer's mean input variance; none: chosen for each layer.",
    )
    learning_rates: tuple[PositiveFloat, ...] = Field(
        (),
        description="Of joint learning behind the exact student, to try; none: no joint learning.",
    )
    cost: Literal["parameters", "macs"] = "parameters"
    budget: int | None = Field(
        None, ge=1, description="The chosen student costs at most this; null: as much as the one configured."
    )
    holdout: float = Field(
        0.1, gt=0, lt=1, description="Share of `images` that trials are judged on and none is computed from."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="null: as many as the cluster's CPUs and GPUs hold."
    )

    @model_validator(mode="after")
    def _no_choice_twice(self) -> "TuneConfig":
        given = {"factors": self.factors, "ridges": self.ridges, "learning_rates": self.learning_rates}
        given |= {f"widths.{tap}": choices for tap, choices in self.widths.items()}
        for key, choices in given.items():
            if len(set(choices)) < len(choices):
                raise ValueError(f"tune.{key}: names a value twice: {list(choices)}")
        return self
