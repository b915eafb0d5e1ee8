"""Test that a pass over images without room for its actors ends with a message that says what is missing."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray

from ka_ray.config import Resources
from ka_ray.distributed import stalled
from ka_ray.distributed.actors import PassMonitor, beside_driver
from ka_ray.distributed.capacity import Host
from ka_ray.distributed.extract import Extraction, extract_features
from ka_ray.distributed.failures import lost
from ka_ray.distributed.placement import STANDARD
from ka_ray.distributed.reduce import reduce_images
from ka_ray.distributed.resources import Pools
from ka_ray.distributed.stalled import PassWatch
from ka_ray.errors import ClusterError
from ka_ray.images.split import split_images
from ka_ray.teachers.reading import ReadSpec

pytestmark = pytest.mark.ray

POOLS = Pools(placement=replace(STANDARD, teachers=Resources(cpu=0.5, gpu=0.5)), timeout_s=3)


@ray.remote
class Holder:
    """Other work, which holds resources of the cluster."""

    def ready(self) -> None:
        """Return as soon as the actor has started."""


@pytest.fixture
def all_gpus_taken(cluster) -> Iterator[None]:
    holder = Holder.options(num_gpus=2, num_cpus=0).remote()  # type: ignore[attr-defined]  # ray.remote class
    ray.get(holder.ready.remote())
    yield
    ray.kill(holder)
    while ray.available_resources().get("GPU", 0) < 2:  # of the passes that were left behind, too
        time.sleep(0.1)


def make_work(config, tmp_path) -> Extraction:
    return Extraction(split_images(config)[0], tmp_path / "out", 4 * 1024**2)


MISSING = (
    r"no image came any further for ray.timeout_s = 3 s. the nodes that are alive have room for it, but not "
    r"beside other work.*free are .* of 2 CPU, 0 of 2 GPU; no actor has started of low, high"
)


def test_a_pass_that_finds_no_room_ends_with_what_is_missing(
    all_gpus_taken, load_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(stalled, "POLL_S", 0.5)
    config = load_config("images.limit=40")
    work, reading = make_work(config, tmp_path), ReadSpec({}, {}, config.scores)
    with pytest.raises(ClusterError, match=f"extraction: {MISSING}"):
        extract_features(work, config.teachers, POOLS, reading, lambda _: None)
    with pytest.raises(ClusterError, match=f"measuring statistics: {MISSING}"):
        reduce_images(work, config.teachers, POOLS, reading, lambda **_: None, 0, lambda _: None)


def test_nodes_that_are_gone_are_missing_with_the_arithmetic(cluster, monkeypatch):
    monitor = beside_driver(PassMonitor, 0, 0)
    monkeypatch.setattr(stalled, "current_hosts", lambda: (Host("10.0.0.1", {"CPU": 8, "GPU": 0}),))
    gone = [{"NodeManagerAddress": "10.0.0.7", "Alive": False, "Resources": {}}]
    monkeypatch.setattr(ray, "nodes", lambda: gone)
    watch = PassWatch("evaluation", ["low", "high"], replace(POOLS, timeout_s=0), monitor)
    with pytest.raises(ClusterError) as raised:
        watch.check()
    message = str(raised.value)
    assert "2 teachers x 1 actors x 0.5 = 1 GPU" in message
    assert "nodes that are gone: 10.0.0.7" in message
    assert not lost(raised.value), "the pass must not be repeated"


def test_progress_within_the_limit_is_no_error(cluster):
    monitor = beside_driver(PassMonitor, 0, 0)
    PassWatch("evaluation", [], replace(POOLS, timeout_s=600), monitor).check()
    time.sleep(0.3)
    assert ray.get(monitor.idle_seconds.remote()) >= 0.3
    ray.get(monitor.record_progress.remote())
    assert ray.get(monitor.idle_seconds.remote()) < 0.3


def test_rows_and_errors_of_a_pass_arrive_as_without_a_watch(cluster):
    monitor = beside_driver(PassMonitor, 0, 0)
    watch = PassWatch("evaluation", [], POOLS, monitor)
    rows = ray.data.range(20)
    assert sorted(row["id"] for row in watch.read_rows(rows)) == list(range(20))

    def fail(batch):
        raise ValueError("these words")

    with pytest.raises(Exception, match="these words"):
        list(watch.read_rows(rows.map_batches(fail)))
