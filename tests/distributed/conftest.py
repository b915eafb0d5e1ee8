"""One local Ray for all tests of this folder: two CPUs, and two logical GPUs that need not exist."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ka_ray.config import RayConfig
from ka_ray.distributed.cluster import Cluster, connect


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # workers must import the networks of these tests
    with connect(RayConfig(num_cpus=2, num_gpus=2)) as connected:
        assert ray.is_initialized()
        yield connected
