"""The `tracking` section: where a run is kept."""

from typing import Literal

from pydantic import Field, field_validator

from ka_ray.config.base import NotBlank, Section
from ka_ray.config.ranges import Name
from ka_ray.storage.uris import refuse_credentials


class TrackingConfig(Section):
    """Where parameters, metrics, figures and the model are kept."""

    backend: Literal["mlflow", "none"] = Field("mlflow", description="none: runs are not tracked.")
    uri: str | None = Field(
        None,
        description="MLflow tracking URI; null: MLFLOW_TRACKING_URI if set, else sqlite in the output folder",
    )
    experiment: NotBlank = Field("ka_ray", description="Name of the MLflow experiment.")
    model: Name | None = Field(
        None, description="Name of the registered model that the student is a version of; null: the run's."
    )
    system_metrics: bool = Field(
        True, description="Log the load of the machine with the driver: CPUs, memory, disk, network, GPUs."
    )

    @field_validator("uri")
    @classmethod
    def _without_credentials(cls, uri: str | None) -> str | None:
        if uri is not None:
            refuse_credentials(uri, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri
