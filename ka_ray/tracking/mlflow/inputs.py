"""The images of a run as datasets of MLflow."""

import json

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from ka_ray.storage.uris import OBJECT_STORES
from ka_ray.tracking.records import TrackedImages


def log_images(client: MlflowClient, run_id: str, images: TrackedImages) -> None:
    """Log images that a run read. Logged again with the same digest, they stay one dataset.

    Args:
        client: The client of the server or database.
        run_id: The id of the run.
        images: The images.
    """
    scheme = images.source.partition("://")[0]
    dataset = Dataset(
        name=images.name,
        digest=images.digest,
        source_type=scheme if scheme in OBJECT_STORES else "local",
        source=json.dumps({"uri": images.source}),
        profile=json.dumps({"num_images": images.images}),
    )
    purpose = InputTag(MLFLOW_DATASET_CONTEXT, images.purpose)
    client.log_inputs(run_id, [DatasetInput(dataset, [purpose])])
