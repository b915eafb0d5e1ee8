"""What each process of a run gets of the cluster, and on which nodes it may run."""

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, field_validator

from ka_ray.config.base import Section


def _whole_or_part(gpu: float) -> float:
    if gpu > 1 and gpu != int(gpu):
        raise ValueError("is a part of one GPU, or a whole number of them")
    return gpu


Cpus = Annotated[float, Field(gt=0)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_whole_or_part)]


class _Resources(Section):
    resources: dict[str, PositiveFloat] = Field(
        default_factory=dict, description="Custom resources of the cluster, by name."
    )
    label: dict[str, str] = Field(
        default_factory=dict, description="Labels that its node has; a value may be !not or in(a,b)."
    )

    @field_validator("resources")
    @classmethod
    def _other_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        own = sorted({"cpu", "gpu", "memory", "object_store_memory"} & {name.lower() for name in resources})
        if own:
            raise ValueError(f"{', '.join(own)}: are no custom resources; cpu and gpu have keys of their own")
        return resources


class Resources(_Resources):
    """The share of one process: CPUs, GPUs (a fraction of one, or several), custom resources, node labels."""

    cpu: Cpus = 1
    gpu: Gpus = 0


class ResourcesConfig(_Resources):
    """The same as the user writes it: what is null is chosen from the machine once Ray is connected."""

    cpu: Cpus | None = Field(None, description="CPUs, also a fraction; null: chosen from the machine.")
    gpu: Gpus | None = Field(
        None,
        description="GPUs; 0.5: two processes share one. null: on one machine as many as its GPUs allow, "
        "on several machines 0.",
    )


class CpuResourcesConfig(ResourcesConfig):
    """The same where no GPU is taken unless the config asks for one."""

    gpu: Gpus = 0


class DecodingResourcesConfig(ResourcesConfig):
    """The same of a task that reads and decodes images, or writes features."""

    gpu: float = Field(0, ge=0, le=0, description="Images are decoded by CPUs.")


class PlacementConfig(Section):
    """Who gets what. Teachers have released theirs when training begins: a small cluster takes turns."""

    teachers: ResourcesConfig = Field(
        ResourcesConfig(), description="Each actor of each teacher, and the actors that evaluate or sum up."
    )
    trainers: ResourcesConfig = Field(ResourcesConfig(), description="Each training worker.")
    decoding: DecodingResourcesConfig = Field(
        DecodingResourcesConfig(), description="Each task that reads, decodes or writes."
    )
    trials: CpuResourcesConfig = Field(CpuResourcesConfig(), description="Each trial of `ka-ray tune`.")
