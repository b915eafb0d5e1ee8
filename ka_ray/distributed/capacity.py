"""Check whether processes fit on the nodes of a cluster, and explain why if they do not.

This module does not import Ray.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ka_ray.config import Resources

EPSILON = 1e-9
"""Tolerance for rounding errors of fractional resources."""

CPU, GPU = "CPU", "GPU"


@dataclass(frozen=True)
class Host:
    """A node of the cluster.

    Attributes:
        name: Its address.
        resources: Name of each Ray resource -> its amount.
        labels: Name of each label -> its value.
    """

    name: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, wanted: Mapping[str, str]) -> bool:
        """Return whether the node has these labels; a value may be ``!x``, ``in(x,y)`` or ``!in(x,y)``."""
        return all(_selects(selector, self.labels.get(key)) for key, selector in wanted.items())


@dataclass(frozen=True)
class Demand:
    """Processes of one kind that run at the same time.

    Attributes:
        what: A description with the numbers that make up ``count``: ``2 teachers x 1 actors``.
        count: The number of processes.
        share: The resources of each process.
        key: The config key to lower if there is no room; an error message names it.
    """

    what: str
    count: int
    share: Resources
    key: str


def _selects(selector: str, value: str | None) -> bool:
    """Return whether a label's value (None: the node has no such label) satisfies a selector, as Ray does."""
    negated, text = selector.startswith("!"), selector.removeprefix("!")
    several = re.fullmatch(r"in\((.*)\)", text)
    wanted = [part.strip() for part in several[1].split(",")] if several else [text]
    return (value in wanted) != negated


def ray_resources(share: Resources) -> dict[str, float]:
    """Return the resources of a process: Ray's name of each resource -> its amount."""
    return {name: n for name, n in {CPU: share.cpu, GPU: share.gpu, **share.resources}.items() if n > 0}


def share_gpus(trainers: Resources, workers: int) -> bool:
    """Return whether two training workers may get the same GPU, which NCCL refuses.

    Args:
        trainers: The resources of each worker.
        workers: The number of workers.
    """
    return workers > 1 and 0 < trainers.gpu <= 0.5


def shortage(stage: str, demands: Sequence[Demand], hosts: Sequence[Host]) -> str | None:
    """Return why processes cannot all run at the same time; None if they can.

    Each process is placed on the first node that has its labels and room for it. The processes whose labels
    the fewest nodes have are placed first, and of those the ones that need most. A fraction of a GPU is a
    part of one device, as in Ray: two GPUs have room for two processes that take 0.6 each, not for three.

    Args:
        stage: The stage that needs the processes, for the message.
        demands: All processes that run at the same time.
        hosts: The nodes.
    """
    rooms = [_Room(host) for host in hosts]
    # Demand -> indices of the nodes that have its labels. By id, because demands hold dicts: not hashable.
    choices = {id(d): [i for i, host in enumerate(hosts) if host.has(d.share.label)] for d in demands}
    in_order = sorted(demands, key=lambda d: (len(choices[id(d)]), -d.share.gpu, -d.share.cpu))
    for demand in in_order:
        each = ray_resources(demand.share)
        for _ in range(demand.count):
            if not any(rooms[i].take(each) for i in choices[id(demand)]):
                return _arithmetic(stage, demands, hosts, demand)
    return None


class _Room:
    """What is left of a node."""

    def __init__(self, host: Host) -> None:
        self._left = dict(host.resources)
        self._gpus = [1.0] * int(self._left.pop(GPU, 0))  # the free part of each device

    def take(self, each: Mapping[str, float]) -> bool:
        """Take the resources of a process, if there is room for it; return whether there is."""
        gpu = each.get(GPU, 0)
        num_gpus, part = math.ceil(gpu - EPSILON), min(gpu, 1)
        # Among the devices with room, Ray takes a fraction from the one that has the least left.
        order = sorted(range(len(self._gpus)), key=self._gpus.__getitem__)
        devices = [i for i in order if self._gpus[i] + EPSILON >= part][:num_gpus]
        others = {name: amount for name, amount in each.items() if name != GPU}
        short = any(self._left.get(name, 0) + EPSILON < amount for name, amount in others.items())
        if short or len(devices) < num_gpus:
            return False
        for device in devices:
            self._gpus[device] -= part
        self._left |= {name: self._left[name] - amount for name, amount in others.items()}
        return True


def _arithmetic(stage: str, demands: Sequence[Demand], hosts: Sequence[Host], unplaced: Demand) -> str:
    """Write the sum of all demands beside what the nodes have, and name the demand that found no room."""
    names = list(dict.fromkeys(name for demand in demands for name in ray_resources(demand.share)))
    sums = []
    for name in names:
        parts = [(d, ray_resources(d.share).get(name, 0)) for d in demands]
        terms = [f"{d.what} x {each:g}" for d, each in parts if each]
        total = sum(d.count * each for d, each in parts)
        sums.append(f"{' + '.join(terms)} = {total:g} {name}")
    offers = [
        f"{host.name} {', '.join(f'{host.resources.get(name, 0):g} {name}' for name in names)}"
        + "".join(f" {key}={value}" for key, value in host.labels.items() if not key.startswith("ray.io/"))
        for host in hosts
    ]
    wanted = ", ".join(f"{key}={value}" for key, value in unplaced.share.label.items())
    where = f" on nodes labelled {wanted}" if wanted else ""
    gpu = unplaced.share.gpu
    if 0 < gpu < 1:
        where += f" (a fraction of a GPU stays on one device: each has room for {int(1 / gpu + EPSILON)})"
    return (
        f"the plan is larger than the cluster: {stage} needs {'; '.join(sums)}. "
        f"No room is left for {unplaced.what}{where}; the nodes have {' | '.join(offers)}. "
        f"Lower {unplaced.key}"
    )
