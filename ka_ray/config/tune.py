"""The `tune` section: the search for widths of codes or layers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ka_ray.config.base import Section
from ka_ray.config.ranges import Count, Positive, Rate

Choices = Annotated[tuple[Count, ...], Field(min_length=1)]


class TuneConfig(Section):
    """Which students `ka-ray tune` tries, and how it compares agreement on held-out images with cost."""

    trials: Count = Field(
        24, description="Number of students to try; for a grid, the largest number allowed."
    )
    algorithm: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="random: some combinations; grid: all combinations; optuna: TPE (extra `optuna`).",
    )
    factors: tuple[Annotated[float, Field(ge=0.001, le=1000)], ...] = Field(
        (0.5, 0.75, 1.0, 1.25),
        min_length=1,
        description="Widths to try at every tap or layer, as multiples of the student's own width.",
    )
    widths: dict[str, Choices] = Field(
        default_factory=dict, description="tap or layer: the widths to try there, instead of `factors`."
    )
    ridges: tuple[Positive, ...] = Field(
        (),
        description="Ridges to try, relative to a layer's mean input variance; empty: chosen layer by layer.",
    )
    learning_rates: tuple[Rate, ...] = Field(
        (),
        description="Learning rates to try in joint learning after the layers; empty: no joint learning.",
    )
    cost: Literal["parameters", "macs"] = Field(
        "parameters", description="What a student costs: its parameters, or its multiply-accumulates."
    )
    budget: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None,
        description="Largest cost of the chosen student; null: the cost of the student as configured.",
    )
    holdout: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Share of `images` on which trials are judged; no trial is computed from them.",
    )
    max_concurrent: Count | None = Field(
        None, description="Trials that run at the same time; null: as many as fit on the cluster."
    )

    @model_validator(mode="after")
    def _no_choice_twice(self) -> "TuneConfig":
        given = {"factors": self.factors, "ridges": self.ridges, "learning_rates": self.learning_rates}
        given |= {f"widths.{tap}": choices for tap, choices in self.widths.items()}
        for key, choices in given.items():
            if len(set(choices)) < len(choices):
                raise ValueError(f"tune.{key}: lists a value twice: {list(choices)}")
        return self
