"""Which plans fit on which nodes, against plans whose answer is plain to see."""

import itertools

import numpy as np
import pytest

from ka_ray.config import Resources
from ka_ray.distributed.capacity import Demand, Host, ray_resources, shortage


def demand(count: int, key: str = "some.key", **share: object) -> Demand:
    return Demand(f"{count} of them", count, Resources.model_validate(share), key)


def host(name: str, cpu: float, gpu: float = 0, labels: dict[str, str] | None = None, **more: float) -> Host:
    return Host(name, {"CPU": cpu, "GPU": gpu, **more}, labels or {})


@pytest.mark.parametrize(
    ("hosts", "demands", "fits"),
    [
        ([host("a", 2)], [demand(2, cpu=1)], True),
        ([host("a", 2)], [demand(3, cpu=1)], False),
        ([host("a", 1, 1), host("b", 1, 1)], [demand(2, cpu=1, gpu=1)], True),
        (
            [host("a", 1, 1), host("b", 1, 1)],
            [demand(1, cpu=1, gpu=2)],
            False,
        ),  # two GPUs, but not on one node
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
        # What may run anywhere must not take the one node that another must have.
        (
            [host("x", 1, labels={"group": "x"}), host("a", 1)],
            [demand(1, cpu=1), demand(1, cpu=1, label={"group": "x"})],
            True,
        ),
    ],
)
def test_what_fits_and_what_does_not(hosts, demands, fits):
    assert (shortage("training", demands, hosts) is None) == fits


def test_a_shortage_is_told_with_the_arithmetic_the_nodes_and_the_key():
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


def test_no_plan_is_refused_that_any_placement_makes_possible():
    """Against trying every placement, on small random clusters of whole CPUs with two kinds of processes."""
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        hosts = [
            host(str(i), int(rng.integers(0, 4)), labels={"x": str(rng.integers(2))})
            for i in range(int(rng.integers(1, 4)))
        ]
        demands = [
            demand(int(rng.integers(1, 3)), cpu=1, label={"x": "1"}),
            demand(int(rng.integers(1, 4)), cpu=1),
        ]
        singles = [one for one in demands for _ in range(one.count)]
        possible = any(
            all(hosts[place].has(one.share.label) for one, place in zip(singles, places, strict=True))
            and all(places.count(i) <= h.resources["CPU"] for i, h in enumerate(hosts))
            for places in itertools.product(range(len(hosts)), repeat=len(singles))
        )
        assert (shortage("x", demands, hosts) is None) == possible
        refused += not possible
    assert 50 < refused < 250


def test_what_a_process_takes_is_named_as_ray_names_it():
    share = Resources(cpu=2, gpu=0.5, resources={"slot": 1})
    assert ray_resources(share) == {"CPU": 2, "GPU": 0.5, "slot": 1}
    assert ray_resources(Resources(cpu=1)) == {"CPU": 1}
