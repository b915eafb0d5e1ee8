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
