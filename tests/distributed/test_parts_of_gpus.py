"""Test that Ray itself places parts of GPUs as `ka_ray.distributed.capacity` says."""

import pytest
import ray

from ka_ray.config import Resources
from ka_ray.distributed.capacity import Demand, shortage
from ka_ray.distributed.cluster import current_hosts

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0.1)
class Part:
    """A process with a part of a GPU."""

    def ready(self) -> None:
        """Return as soon as the actor has started."""


@pytest.mark.parametrize(("count", "gpu"), [(2, 0.6), (3, 0.6), (4, 0.5)])
def test_ray_starts_all_parts_exactly_if_there_is_no_shortage(cluster, count, gpu):
    demand = Demand("", count, Resources(cpu=0.1, gpu=gpu), "")
    fits = shortage("", [demand], current_hosts()) is None
    parts = [Part.options(num_gpus=gpu).remote() for _ in range(count)]  # type: ignore[attr-defined]
    try:
        ready = [part.ready.remote() for part in parts]
        started, _ = ray.wait(ready, num_returns=count, timeout=60 if fits else 10)
        assert (len(started) == count) == fits
    finally:
        for part in parts:
            ray.kill(part)
