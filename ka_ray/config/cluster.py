"""The `ray` section: which cluster, how many training workers, and how often they may be lost."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from ka_ray.config.base import Section
from ka_ray.config.ranges import Count, CountOrZero


class WorkerRange(Section):
    """An elastic group: training starts with the workers that fit, and grows when nodes are added."""

    min: Count = Field(description="Smallest number of training workers.")
    max: Count = Field(description="Largest number of training workers.")

    @model_validator(mode="after")
    def _in_order(self) -> "WorkerRange":
        if self.max < self.min:
            raise ValueError(f"max: {self.max} is smaller than min: {self.min}")
        return self


Workers = Annotated[
    Annotated[CountOrZero, Tag("number")] | Annotated[WorkerRange, Tag("range")],
    Discriminator(lambda v: "range" if isinstance(v, dict | WorkerRange) else "number"),
]


STANDARD_WORKERS = 2
"""The number of training workers if the config gives none, unless the command trains by itself."""


class RayConfig(Section):
    """Which Ray cluster runs the work, and how training copes with lost workers."""

    address: str | None = Field(
        None,
        description="HOST:PORT of the cluster; null: RAY_ADDRESS if set, otherwise the Ray that `ray start` "
        "has started on this machine, otherwise Ray starts here; local: Ray always starts here.",
    )
    num_cpus: Count | None = Field(
        None, description="CPUs of the Ray that starts on this machine; null: all."
    )
    num_gpus: CountOrZero | None = Field(
        None, description="GPUs of the Ray that starts on this machine; null: all."
    )
    autoscaling: bool | None = Field(
        None,
        description="true: the cluster adds nodes on demand, so plans are not compared with its size; "
        "null: ask the cluster.",
    )
    workers: Workers | None = Field(
        None,
        description="Training workers: a number, or {min, max}, as many as the cluster has room for; 0: the "
        "command trains by itself, with all cores of its machine or one GPU; null: 0 if Ray starts here and "
        "there is at most one GPU, otherwise 2, or 1 if there is no room for 2.",
    )
    max_failures: CountOrZero = Field(
        3, description="Maximum number of consecutive failures of workers or nodes without progress."
    )
    timeout_s: int = Field(
        1800,
        ge=1,
        le=31_536_000,
        description="Seconds without progress after which training, or a pass over images, fails.",
    )

    @property
    def worker_range(self) -> tuple[int, int]:
        """The smallest and the largest number of training workers; null counts as 2, because it may be 2."""
        workers = STANDARD_WORKERS if self.workers is None else self.workers
        return (workers, workers) if isinstance(workers, int) else (workers.min, workers.max)

    @property
    def workers_text(self) -> str:
        """The number of training workers as text, such as ``2 to 8 workers``."""
        least, most = self.worker_range
        if least == most == 1:
            return "1 worker"
        return f"{least} workers" if least == most else f"{least} to {most} workers"
