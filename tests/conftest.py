"""Fixtures that the test modules share: small teachers, small stores, small runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from ka_ray.config import Config
from ka_ray.features.store import Store, finish_folder, start_folder, write_shard
from ka_ray.student import StudentSpec
from ka_ray.teachers.plain import plain_conv_net

TEACHER_CLASSES = {
    "low": [f"digit_{i}" for i in range(5)],
    "high": [f"digit_{i}" for i in range(5, 10)],
}
TEACHER_WIDTHS = (4, 6)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the tensors are tiny, and the cores are shared


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomise(network: nn.Module) -> nn.Module:
    """Give every parameter and batch norm statistic a value that hides no mistake."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    return randomise


@pytest.fixture
def config_tree(tmp_path: Path) -> dict[str, Any]:
    """A run on the digits with two small plain teachers, whose checkpoints lie in tmp_path."""
    teachers = []
    for name, classes in TEACHER_CLASSES.items():
        checkpoint = tmp_path / f"{name}.safetensors"
        save_file(randomise(plain_conv_net(len(classes), TEACHER_WIDTHS)).state_dict(), checkpoint)
        arguments = {"widths": list(TEACHER_WIDTHS)}
        teachers.append(
            {
                "name": name,
                "network": "plain",
                "arguments": arguments,
                "classes": list(classes),
                "checkpoint": str(checkpoint),
            }
        )
    return {"name": "run", "images": {"source": "digits"}, "teachers": teachers}


@pytest.fixture
def load_config(tmp_path: Path, config_tree: dict[str, Any]) -> Callable[..., Config]:
    """Load ``config_tree``, as it is now, with overrides."""

    def load(*overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config_tree))
        return Config.load(path, overrides)

    return load


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Write columns into a finished folder of several shards and open it."""

    def make(columns: dict[str, Any], shards: int = 3, folder: str = "store") -> Store:
        target = tmp_path / folder
        start_folder(target)
        for rows in np.array_split(np.arange(len(columns["image_id"])), shards):
            write_shard(target, {name: column[rows] for name, column in columns.items()})
        finish_folder(target, {"rows": len(columns["image_id"])})
        return Store(target)

    return make


@pytest.fixture
def make_spec() -> Callable[..., StudentSpec]:
    """Describe a student with classes ``a`` ... split over two teachers."""

    def make(
        network: str, widths: dict[str, int], /, image_size: int = 8, classes: int = 4, **arguments: Any
    ) -> StudentSpec:
        names = tuple(f"class_{i}" for i in range(classes))
        return StudentSpec(
            network=network,
            arguments=arguments,
            paths={tap: tap for tap in widths},
            widths=widths,
            label_sets={"low": names[: classes // 2], "high": names[classes // 2 :]},
            rule=None,
            image_size=image_size,
            resize="squash",
            preprocessing={"size": None, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        )

    return make
