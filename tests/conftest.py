"""Fixtures that the test modules share: an S3 server, and small teachers, configs and stores."""

import re
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from ka_ray.config import Config
from ka_ray.features.store import Store, create_shard_folder, mark_folder_finished, write_shard
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


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], Path]]:
    """An S3 server in a separate process: environment variables for its clients, and the path of its log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(environment["AWS_ENDPOINT_URL"], timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield environment, log
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def s3(s3_server: tuple[dict[str, str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URI of a new, empty bucket; local copies of its files go to a cache in ``tmp_path``."""
    import s3fs

    for name, value in s3_server[0].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(bucket)
    return f"s3://{bucket}"


@pytest.fixture
def s3_requests(s3_server: tuple[dict[str, str], Path], s3: str) -> Callable[[str, str], list[str]]:
    """Return a function that lists the requests of an HTTP method for files with a given ending."""

    def find(method: str, ending: str) -> list[str]:
        lines = s3_server[1].read_text().splitlines()
        pattern = re.compile(rf"{method} /{s3.removeprefix('s3://')}\S*{re.escape(ending)} HTTP")
        return [line for line in lines if pattern.search(line)]

    return find


def randomise(network: nn.Module) -> nn.Module:
    """Draw the weights and statistics of all batch norms: the initial 0 and 1 would hide mistakes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """The function :func:`randomise`, which test modules cannot import."""
    return randomise


@pytest.fixture
def config_tree(tmp_path: Path) -> dict[str, Any]:
    """The config, as a dict, of a run on the digits with two small plain teachers that have checkpoints."""
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
    """Return a function that loads the current content of ``config_tree`` with overrides."""

    def load(*overrides: str) -> Config:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(config_tree))
        return Config.load(path, overrides)

    return load


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Store]:
    """Return a function that writes columns into a finished folder of several shards and opens it."""

    def make(columns: dict[str, Any], shards: int = 3, folder: str = "store") -> Store:
        target = tmp_path / folder
        create_shard_folder(target)
        for rows in np.array_split(np.arange(len(columns["image_id"])), shards):
            write_shard(target, {name: column[rows] for name, column in columns.items()})
        mark_folder_finished(target, {"rows": len(columns["image_id"])})
        return Store(target)

    return make


@pytest.fixture
def make_spec() -> Callable[..., StudentSpec]:
    """Return a function that describes a student with classes ``class_0`` ... split over two teachers."""

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
            preprocessing={
                "resize": "squash",
                "size": image_size,
                "crop": image_size,
                "mean": [0.5, 0.4, 0.3],
                "std": [0.2, 0.3, 0.4],
            },
            decoding={},
        )

    return make
