"""The `placement` section: the resources of each process of a run, and the nodes that it may run on."""

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from ka_ray.config.base import Section
from ka_ray.config.ranges import Text


def _whole_or_part(gpu: float) -> float:
    if gpu > 1 and gpu != int(gpu):
        raise ValueError("must be a fraction of one GPU, or a whole number of GPUs")
    return gpu


Cpus = Annotated[float, Field(ge=0.0001, le=1e6)]
Gpus = Annotated[float, Field(ge=0, le=1e6), AfterValidator(_whole_or_part)]


class _Resources(Section):
    resources: dict[Text, Cpus] = Field(
        default_factory=dict, description="Custom Ray resources: name -> amount."
    )
    label: dict[Text, str] = Field(
        default_factory=dict,
        description="Labels that the node must have; a value may be !x, in(x,y) or !in(x,y).",
    )

    @field_validator("resources")
    @classmethod
    def _other_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        own = sorted({"cpu", "gpu", "memory", "object_store_memory"} & {name.lower() for name in resources})
        if own:
            raise ValueError(f"{', '.join(own)}: are not custom resources; use the keys cpu and gpu")
        return resources


class Resources(_Resources):
    """The resources of one process: CPUs, GPUs, custom resources, node labels."""

    cpu: Cpus = Field(1, description="CPUs, also a fraction.")
    gpu: Gpus = Field(0, description="GPUs: a fraction of one, or a whole number.")


class ResourcesConfig(_Resources):
    """The resources of one process as a config gives them; null values are chosen once Ray is connected."""

    cpu: Cpus | None = Field(None, description="CPUs, also a fraction; null: chosen from the machine.")
    gpu: Gpus | None = Field(
        None,
        description="GPUs; 0.5: two processes share one. null: on one machine, the processes share its GPUs; "
        "on several machines 0.",
    )


class CpuResourcesConfig(ResourcesConfig):
    """The resources of a process that uses no GPU unless the config gives it one."""

    gpu: Gpus = 0


class DecodingResourcesConfig(ResourcesConfig):
    """The resources of a task that reads and decodes images, or writes features; it never uses a GPU."""

    gpu: float = Field(0, ge=0, le=0, description="Always 0: CPUs decode the images.")


class PlacementConfig(Section):
    """The resources of each kind of process.

    Teachers release their resources before training begins, so that a small cluster can do both in turn.
    """

    teachers: ResourcesConfig = Field(
        ResourcesConfig(),
        description="Each actor of each teacher, and each evaluator or reducer that receives their rows.",
    )
    trainers: ResourcesConfig = Field(ResourcesConfig(), description="Each training worker.")
    decoding: DecodingResourcesConfig = Field(
        DecodingResourcesConfig(), description="Each task that reads, decodes or writes."
    )
    trials: CpuResourcesConfig = Field(CpuResourcesConfig(), description="Each trial of `ka-ray tune`.")
