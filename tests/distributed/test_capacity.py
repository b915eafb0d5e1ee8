"""Check which demands fit on which nodes, by hand-made cases and by trying every placement."""

import itertools

import numpy as np
import pytest

from ka_ray.config import Resources
from ka_ray.distributed.capacity import Demand, Host, ray_resources, shortage


def demand(count: int, key: str = "some.key", **resources: object) -> Demand:
    """Return a demand for ``count`` processes with these resources each."""
    return Demand(f"{count} processes", count, Resources.model_validate(resources), key)


def host(
    name: str, cpu: float, gpu: float = 0, labels: dict[str, str] | None = None, **custom: float
) -> Host:
    return Host(name, {"CPU": cpu, "GPU": gpu, **custom}, labels or {})


@pytest.mark.parametrize(
    ("hosts", "demands", "fits"),
    [
        ([host("a", 2)], [demand(2, cpu=1)], True),
        ([host("a", 2)], [demand(3, cpu=1)], False),
        ([host("a", 1, 1), host("b", 1, 1)], [demand(2, cpu=1, gpu=1)], True),
        # There are two GPUs, but on different nodes.
        ([host("a", 1, 1), host("b", 1, 1)], [demand(1, cpu=1, gpu=2)], False),
        ([host("a", 4, 1)], [demand(4, cpu=0.5, gpu=0.25)], True),
        ([host("a", 4, 1)], [demand(5, cpu=0.5, gpu=0.25)], False),
        # A process gets its fraction from one device: 1.8 of 2 GPUs, but 0.4 is left of each, not 0.8 of one.
        ([host("a", 4, 2)], [demand(3, cpu=0.5, gpu=0.6)], False),
        ([host("a", 4, 2)], [demand(2, cpu=0.5, gpu=0.6)], True),
        ([host("a", 4, 2)], [demand(2, cpu=0.5, gpu=0.6), demand(2, cpu=0.5, gpu=0.4)], True),
        ([host("a", 4, 2)], [demand(2, cpu=0.5, gpu=0.5), demand(1, cpu=0.5, gpu=1)], True),
        ([host("a", 4, 2)], [demand(3, cpu=0.5, gpu=0.3), demand(1, cpu=0.5, gpu=2)], False),
        ([host("a", 4, 1), host("b", 4, 1)], [demand(3, cpu=0.5, gpu=0.6)], False),
        ([host("a", 4, 1)], [demand(3, cpu=0.5, gpu=0.3333)], True),
        (
            [host("a", 4), host("b", 4, labels={"group": "x"})],
            [demand(2, cpu=4, label={"group": "x"})],
            False,
        ),
        (
            [host("a", 4), host("b", 4, labels={"group": "x"})],
            [demand(1, cpu=4, label={"group": "!x"})],
            True,
        ),
        ([host("b", 4, labels={"group": "x"})], [demand(1, cpu=4, label={"group": "!in(x, y)"})], False),
        ([host("b", 4, labels={"group": "x"})], [demand(1, cpu=4, label={"group": "in(y, x)"})], True),
        ([host("a", 4)], [demand(1, cpu=1, resources={"slot": 1})], False),
        ([host("a", 4, slot=1)], [demand(1, cpu=1, resources={"slot": 1})], True),
        # A process that may run anywhere must not take the only node on which another one can run.
        (
            [host("x", 1, labels={"group": "x"}), host("a", 1)],
            [demand(1, cpu=1), demand(1, cpu=1, label={"group": "x"})],
            True,
        ),
    ],
)
def test_a_shortage_is_found_exactly_if_the_demands_do_not_fit(hosts, demands, fits):
    assert (shortage("training", demands, hosts) is None) == fits


def test_the_message_of_a_shortage_has_the_arithmetic_the_nodes_and_the_key():
    hosts = [host("10.0.0.1", 4, 1, {"group": "x", "ray.io/node-id": "abc"}), host("10.0.0.2", 8)]
    demands = [
        Demand(
            "2 teachers x 1 actors", 2, Resources(cpu=0.5, gpu=1, label={"group": "x"}), "placement.teachers"
        ),
        Demand("1 task", 1, Resources(cpu=0.25), "placement.decoding"),
    ]
    assert shortage("extraction", demands, hosts) == (
        "the plan is larger than the cluster: extraction needs 2 teachers x 1 actors x 0.5 + 1 task x 0.25 "
        "= 1.25 CPU; 2 teachers x 1 actors x 1 = 2 GPU. No room is left for 2 teachers x 1 actors on nodes "
        "labelled group=x; the nodes have 10.0.0.1 4 CPU, 1 GPU group=x | 10.0.0.2 8 CPU, 0 GPU. "
        "Lower placement.teachers"
    )


def test_the_message_of_a_shortage_of_parts_of_gpus_says_that_each_stays_on_one_device():
    message = shortage("training", [demand(3, "ray.workers", cpu=1, gpu=0.6)], [host("a", 8, 2)])
    assert message is not None
    assert "3 processes x 0.6 = 1.8 GPU" in message
    assert "a fraction of a GPU stays on one device: each has room for 1" in message


def test_parts_of_gpus_fit_exactly_if_each_can_be_part_of_one_device():
    """Try every way to put processes on devices, for equal parts: only then is the order no matter."""
    for num_gpus, count, part in itertools.product((1, 2, 3), range(1, 7), (0.2, 0.3, 0.5, 0.6, 1.0)):
        possible = any(
            all(devices.count(i) * part <= 1 + 1e-9 for i in range(num_gpus))
            for devices in itertools.product(range(num_gpus), repeat=count)
        )
        problem = shortage("x", [demand(count, cpu=0.1, gpu=part)], [host("a", 64, num_gpus)])
        assert (problem is None) == possible, (num_gpus, count, part)


def test_a_shortage_is_found_exactly_if_no_placement_is_possible():
    """Try every placement on small random clusters with whole CPUs and two kinds of processes."""
    rng, num_refused = np.random.default_rng(0), 0
    for _ in range(300):
        hosts = [
            host(str(i), int(rng.integers(0, 4)), labels={"x": str(rng.integers(2))})
            for i in range(int(rng.integers(1, 4)))
        ]
        demands = [
            demand(int(rng.integers(1, 3)), cpu=1, label={"x": "1"}),
            demand(int(rng.integers(1, 4)), cpu=1),
        ]
        processes = [kind for kind in demands for _ in range(kind.count)]
        possible = any(
            all(hosts[node].has(process.share.label) for process, node in zip(processes, nodes, strict=True))
            and all(nodes.count(i) <= h.resources["CPU"] for i, h in enumerate(hosts))
            for nodes in itertools.product(range(len(hosts)), repeat=len(processes))
        )
        assert (shortage("x", demands, hosts) is None) == possible
        num_refused += not possible
    assert 50 < num_refused < 250


def test_ray_resources_have_the_names_of_ray():
    assert ray_resources(Resources(cpu=2, gpu=0.5, resources={"slot": 1})) == {
        "CPU": 2,
        "GPU": 0.5,
        "slot": 1,
    }
    assert ray_resources(Resources(cpu=1)) == {"CPU": 1}
