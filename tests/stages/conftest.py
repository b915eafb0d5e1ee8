"""Fixture that makes runs whose features are extracted, for the tests of the training stages."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ka_ray.features.resize import resize_features
from ka_ray.features.store import FEATURES, IMAGES
from ka_ray.stages.inputs import StageInputs
from ka_ray.student.plan import make_plan
from ka_ray.teachers import load_teacher

NUM_IMAGES = 256
FEW_EPOCHS = (
    "codes.solver=sgd",
    "codes.epochs=3",
    "layers.epochs=2",
    "joint.epochs=3",
    "joint.batch_size=32",
)


@pytest.fixture
def make_inputs(load_config, make_store, tmp_path):
    """Return a function that makes the inputs of a run whose features are extracted."""

    def make(
        *overrides: str, pixels: np.ndarray | None = None, num_features: int = NUM_IMAGES
    ) -> StageInputs:
        """Make the inputs of a run.

        Args:
            overrides: Overrides of the config.
            pixels: The images; None for the digits.
            num_features: Number of images whose features are stored. Of the others, only the scores are.
        """
        config = load_config(*FEW_EPOCHS, *overrides)
        teachers = [load_teacher(teacher) for teacher in config.teachers]
        plan = make_plan(config, teachers)
        grey = np.round(load_digits().images[:NUM_IMAGES] * 255 / 16).astype(np.uint8)
        pixels = np.repeat(grey[:, None], 3, axis=1) if pixels is None else pixels
        columns = {"image_id": np.arange(NUM_IMAGES), "image": pixels}
        read = [teacher.features(torch.from_numpy(pixels), plan.paths[teacher.name]) for teacher in teachers]
        for tap in plan.shapes:
            stacked = torch.cat(
                [resize_features(features[tap], plan.spaces[tap]) for features, _ in read], dim=1
            )
            columns[tap] = stacked.half().numpy()
        columns["scores"] = torch.cat([scores for _, scores in read], dim=1).half().numpy()
        make_store({name: column[:num_features] for name, column in columns.items()}, folder=FEATURES)
        if num_features < NUM_IMAGES:
            without_features = ("image_id", "image", "scores")
            make_store({name: columns[name][num_features:] for name in without_features}, folder=IMAGES)
        return StageInputs(config, plan, tmp_path, tmp_path, torch.device("cpu"), lambda progress: None)

    return make
