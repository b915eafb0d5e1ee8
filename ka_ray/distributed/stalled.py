"""End a pass over images that makes no progress, and say what it waits for.

Ray Data waits without a limit and without a word for actors that find no room: beside other work, on nodes
that are gone, or on a cluster that was expected to grow.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ka_ray.config import RayConfig
from ka_ray.distributed.actors import PassMonitor, beside_driver
from ka_ray.distributed.capacity import CPU, GPU
from ka_ray.distributed.cluster import current_hosts
from ka_ray.distributed.placement import Workload, first_shortage, pass_demands
from ka_ray.distributed.resources import Pools
from ka_ray.errors import ClusterError
from ka_ray.images.split import ImageSet

POLL_S = 2.0
"""Seconds between two questions how long ago the last progress was."""


@dataclass(frozen=True)
class PassWatch:
    """Watches the progress of a pass.

    Attributes:
        stage: Name of the kind of pass, a key of :func:`ka_ray.distributed.placement.pass_demands`.
        networks: Names of the teachers, and of other networks that the images pass through.
        pools: The processes of the pass, and how long it may make no progress.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass.
    """

    stage: str
    networks: Sequence[str]
    pools: Pools
    monitor: Any

    def read_rows(self, rows: ray.data.Dataset) -> Iterator[dict[str, Any]]:
        """Run a pass: yield the rows of its dataset, small ones, as they come.

        Args:
            rows: The lazy dataset of the pass.

        Raises:
            ClusterError: There was no progress for ``ray.timeout_s``.
            Exception: The error that ended the pass.
        """
        found, left = queue.SimpleQueue[tuple[str, Any]](), threading.Event()
        # Ray Data's iterator cannot be interrupted, so a thread waits for it. If it is left behind and a row
        # comes after all, it closes the iterator, which stops the pass.
        arguments = (rows, found, left)
        threading.Thread(target=_forward_rows, args=arguments, name="pass", daemon=True).start()
        try:
            while True:
                try:
                    kind, content = found.get(timeout=POLL_S)
                except queue.Empty:
                    self.check()
                    continue
                if kind == "end":
                    return
                if kind == "error":
                    raise content
                yield content
        finally:
            left.set()

    def check(self) -> None:
        """Check that the pass has made progress within ``ray.timeout_s``.

        Raises:
            ClusterError: It has not; the message says what is missing.
        """
        limit = self.pools.timeout_s
        if ray.get(self.monitor.idle_seconds.remote()) > limit:
            raise ClusterError(
                f"{self.stage}: no image came any further for ray.timeout_s = {limit} s. {self._missing()}"
            )

    def _missing(self) -> str:
        """Return what the pass waits for, as far as Ray knows, as sentences for the user."""
        hosts, extract = current_hosts(), self.pools.extract
        load = Workload(len(self.networks), extract, RayConfig())
        placement = self.pools.placement
        demands = pass_demands(placement.teachers, placement.decoding, load)[self.stage]
        shortage = first_shortage({self.stage: demands}, hosts)
        has = {name: sum(host.resources.get(name, 0) for host in hosts) for name in (CPU, GPU)}
        free = ray.available_resources()
        parts = [f"{free.get(name, 0):g} of {total:g} {name}" for name, total in has.items() if total]
        known = "the nodes that are alive have room for it, but not beside other work, or they do not answer"
        said = [shortage or known, f"free are {', '.join(parts)}"]
        started = {entry["teacher"] for entry in ray.get(self.monitor.summary.remote())["placements"]}
        if waiting := [name for name in self.networks if name not in started]:
            said.append(f"no actor has started of {', '.join(waiting)}")
        if dead := sorted({node["NodeManagerAddress"] for node in ray.nodes() if not node["Alive"]}):
            said.append(f"nodes that are gone: {', '.join(dead)}")
        return f"{'; '.join(said)}. Free or add resources, then run the same command again to resume"


def start_watch(stage: str, images: ImageSet, networks: Sequence[str], pools: Pools) -> PassWatch:
    """Start the monitor of a pass, and return the watch on it; see :class:`PassWatch`.

    Args:
        stage: Name of the kind of pass.
        images: The images, whose config says how many may be unreadable.
        networks: Names of the networks that the images pass through.
        pools: The processes of the pass.
    """
    monitor = beside_driver(PassMonitor, images.config.max_unreadable, pools.max_failures)
    return PassWatch(stage, networks, pools, monitor)


def _forward_rows(
    rows: ray.data.Dataset, found: "queue.SimpleQueue[tuple[str, Any]]", left: threading.Event
) -> None:
    """Put rows into a queue, then ``end`` or the error that ended the pass."""
    try:
        for row in rows.iter_rows():
            if left.is_set():
                return
            found.put(("row", row))
        found.put(("end", None))
    except BaseException as error:
        found.put(("error", error))
