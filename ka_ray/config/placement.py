"""What each process of a run gets of the cluster, and on which nodes it may run."""

from pydantic import Field, PositiveFloat, field_validator

from ka_ray.config.base import Section


class Resources(Section):
    """What one process gets: CPUs, GPUs, custom resources; its node's labels."""

    cpu: float = Field(1, gt=0)
    gpu: float = Field(0, ge=0, description="A fraction: so many processes share a GPU.")
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Custom resources of the cluster, by name."
    )
    label: dict[str, str] = Field(
        default_factory=dict, description="Labels that its node has; a value may be !not or in(a,b)."
    )

    @field_validator("gpu")
    @classmethod
    def _whole_or_part(cls, gpu: float) -> float:
        if gpu > 1 and gpu != int(gpu):
            raise ValueError("is a part of one GPU, or a whole number of them")
        return gpu

    @field_validator("resources")
    @classmethod
    def _other_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        own = sorted({"cpu", "gpu", "memory", "object_store_memory"} & {name.lower() for name in resources})
        if own:
            raise ValueError(f"{', '.join(own)}: are no custom resources; cpu and gpu have keys of their own")
        return resources


class TeacherShare(Resources):
    """The same of a teacher's actor, a judge or a reducer."""

    cpu: float = Field(0.5, gt=0)


class DecodingShare(Resources):
    """The same of a task that reads and decodes images, or writes features."""

    cpu: float = Field(0.25, gt=0)
    gpu: float = Field(0, ge=0, le=0, description="Images are decoded by CPUs.")


class PlacementConfig(Section):
    """Who gets what. Teachers have released theirs when training begins: a small cluster takes turns."""

    teachers: TeacherShare = Field(TeacherShare(), description="Each actor of each teacher.")
    trainers: Resources = Field(Resources(), description="Each training worker.")
    decoding: DecodingShare = Field(DecodingShare(), description="Each task that reads, decodes or writes.")
    trials: Resources = Field(Resources(), description="Each trial of `ka-ray tune`.")
