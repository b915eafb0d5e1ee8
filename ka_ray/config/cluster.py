"""Where a run happens: which cluster, how many training workers, and how often they may be lost."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from ka_ray.config.base import Section


class WorkerRange(Section):
    """An elastic group: training goes on with what is there, and takes in what is added."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerRange":
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is smaller than min: {self.min}")
        return self


Workers = Annotated[
    Annotated[int, Field(ge=1), Tag("number")] | Annotated[WorkerRange, Tag("range")],
    Discriminator(lambda v: "range" if isinstance(v, dict | WorkerRange) else "number"),
]


STANDARD_WORKERS = 2
"""Number of training workers, unless only one fits."""


class RayConfig(Section):
    """Where it runs."""

    address: str | None = Field(None, description="null: RAY_ADDRESS if set, else a Ray on this machine")
    num_cpus: int | None = Field(None, ge=1, description="CPUs of a Ray started here; null: all")
    num_gpus: int | None = Field(None, ge=0, description="GPUs of a Ray started here; null: all")
    autoscaling: bool | None = Field(
        None, description="true: the cluster grows on demand, do not compare plans with it; null: as it says"
    )
    workers: Workers | None = Field(
        None,
        description="Training workers: a number, or {min, max}, as many as the cluster has room for; "
        "null: 2, or 1 on one core or one GPU.",
    )
    max_failures: int = Field(
        3, ge=0, description="Lost workers or nodes in a row, with nothing finished between, to get over."
    )
    timeout_s: int = Field(1800, ge=1, description="A collective stuck for this long fails the stage.")

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the largest number of training workers; null counts as 2."""
        workers = STANDARD_WORKERS if self.workers is None else self.workers
        return (workers, workers) if isinstance(workers, int) else (workers.min, workers.max)

    @property
    def group(self) -> str:
        """The number of training workers in words."""
        least, most = self.worker_range
        if least == most == 1:
            return "1 worker"
        return f"{least} workers" if least == most else f"{least} to {most} workers"
