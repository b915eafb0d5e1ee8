"""Map-reduce over images: sum statistics of the teachers' features and scores in actors, then merge the sums.

Only sums are kept, not the images' features. So disk, memory and network traffic of the merge do not grow
with the number of images.

`Dataset.aggregate` of Ray Data could do this, too, but it makes separate sums for every block of rows, in
separate tasks. Sums hold matrices of channels x channels, so each block would write large sums to the object
store. Here an actor adds its whole part of the stream to the same sums, on its GPU if it has one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import ray
import torch
from torch import Tensor

from ka_ray.config import Resources, TeacherConfig
from ka_ray.distributed.actors import ReportQueue, beside_driver
from ka_ray.distributed.device import actor_device
from ka_ray.distributed.extract import Extraction
from ka_ray.distributed.images import check_any_readable, read_images
from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.retries import repeat_if_lost
from ka_ray.distributed.stalled import PassWatch, start_watch
from ka_ray.distributed.teachers import list_networks, run_teachers
from ka_ray.errors import ClusterError
from ka_ray.features.stack import SCORES, TARGETS, stack_columns
from ka_ray.numerics.hashed_random import draw_uniform
from ka_ray.numerics.memory_format import to_preferred_memory_format
from ka_ray.numerics.named_moments import NamedMoments, merge_moments
from ka_ray.numerics.ridge import NUM_SOLVER_DRAWS
from ka_ray.teachers.reading import ReadSpec

POLL_S = 1.0
"""Seconds between two reports of progress."""

COUNT_BYTES = 8
"""Size of the count of one tap's moments, an integer of 64 bits."""


class Meter(Protocol):
    """Adds batches to sums, whose size does not depend on the number of images."""

    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add ``image [n, 3, H, W]``, per tap ``[n, S, *space]``, ``scores`` and random numbers ``draws``."""

    @property
    def total(self) -> NamedMoments:
        """The sums over all batches so far."""


class MakeMeter(Protocol):
    """Function that makes a meter; it is sent to the reducers and called there."""

    def __call__(self, *, device: torch.device) -> Meter:
        """Make a meter that keeps its sums on the given device."""


@ray.remote
class Reducer:
    """Adds up statistics of its part of the stream of stacked features.

    Args:
        make_meter: Makes the object that adds up batches.
        pools: The settings of the pass, among them the batch size.
        share: The resources of this reducer.
        reading: Which features and scores of the teachers are added up.
        seed: The seed of ``draws``, random numbers that depend only on the seed and the image's id.
    """

    def __init__(
        self, make_meter: MakeMeter, pools: Pools, share: Resources, reading: ReadSpec, seed: int
    ) -> None:
        self._meter = make_meter(device=actor_device(share))
        self._batch_size, self._reading, self._seed = pools.batch_size, reading, seed
        self._images = 0

    def consume(self, rows: ray.data.DataIterator, queue: Any) -> NamedMoments:
        """Add every batch of one part of the stream, and return the sums on the CPU.

        Args:
            rows: The part of the stream.
            queue: A :class:`ka_ray.distributed.actors.ReportQueue`, which gets the number of added images.
        """
        taps, teachers = list(self._reading.spaces), list(self._reading.paths)
        scores = TARGETS if self._reading.scores.views else SCORES
        for columns in rows.iter_batches(batch_size=self._batch_size, batch_format="numpy"):
            stacked = stack_columns(columns, taps, teachers, scores, float32=self._reading.float32)
            batch = {name: torch.tensor(stacked[name]) for name in ("image", *taps, SCORES)}
            batch |= {
                n: to_preferred_memory_format(t, torch.float32)
                for n, t in batch.items()
                if t.is_floating_point()
            }
            draws = draw_uniform(columns["image_id"].astype(np.int64), self._seed, NUM_SOLVER_DRAWS)
            self._meter.add(batch | {"draws": torch.from_numpy(draws)})
            self._images += len(draws)
            queue.add.remote({"images": len(draws)})
        return {name: part.cpu() for name, part in self._meter.total.items()}

    def images(self) -> int:
        """Return the number of images that were added."""
        return self._images


@ray.remote(num_cpus=0)
def merged(first: NamedMoments, second: NamedMoments) -> NamedMoments:
    """Merge two sums in a task, so that the driver does not have to hold the sums of all reducers.

    Args:
        first: Some sums.
        second: The sums of other images.
    """
    return merge_moments(first, second)


@ray.remote(num_cpus=0)
def size_of(sums: NamedMoments) -> int:
    """Return the size of sums in bytes when they are sent over the network, without their names."""
    return sum(part.mean.nbytes + part.scatter.nbytes + COUNT_BYTES for part in sums.values())


def reduce_images(
    work: Extraction,
    teachers: Sequence[TeacherConfig],
    pools: Pools,
    reading: ReadSpec,
    make_meter: MakeMeter,
    seed: int,
    on_images: Callable[[int], None],
) -> tuple[NamedMoments, dict[str, Any]]:
    """Stream images through the teachers into meters, and merge their sums.

    Args:
        work: Which images to read; its output folder is not used.
        teachers: The teachers in stacking order.
        pools: The number and the resources of the processes of the pass.
        reading: Which features and scores are added up.
        make_meter: Called by every reducer to make its meter.
        seed: The seed of the random numbers of each image.
        on_images: Called with the number of images added since the last call; negative if an attempt failed.

    Returns:
        The sums, and the content of a :class:`ka_ray.reports.summaries.ReductionSummary`.

    Raises:
        InputError: Too many images are unreadable, or features are not finite.
        ClusterError: There was no progress for ``ray.timeout_s``.
    """
    began = time.perf_counter()
    watch = start_watch("measuring statistics", work.images, list_networks(teachers, reading), pools)
    monitor = watch.monitor
    share = pools.downstream_resources(len(teachers), pools.extract.reducers)

    def one_pass() -> tuple[NamedMoments, dict[str, Any]]:
        rows = run_teachers(read_images(work.images, monitor, pools), teachers, pools, reading, monitor)
        reducers = _start_reducers(make_meter, pools, share, reading, seed)
        return _reduce(rows, reducers, on_images, watch)

    sums, summary = repeat_if_lost(one_pass, monitor, pools.max_failures)
    _check_count(summary["images"], len(work.images.ids), monitor)
    return sums, ray.get(monitor.summary.remote()) | summary | {"seconds": time.perf_counter() - began}


def _start_reducers(
    make_meter: MakeMeter, pools: Pools, share: Resources, reading: ReadSpec, seed: int
) -> list[Any]:
    start = Reducer.options(**remote_options(share)).remote  # type: ignore[attr-defined]  # ray.remote class
    return [start(make_meter, pools, share, reading, seed) for _ in range(pools.extract.reducers)]


def _check_count(images: int, listed: int, monitor: Any) -> None:
    check_any_readable(images, ray.get(monitor.summary.remote())["unreadable"])
    wanted = listed - len(ray.get(monitor.without_row.remote()))
    if images != wanted:
        raise ClusterError(f"{images} images were added up instead of {wanted}")


def _reduce(
    rows: ray.data.Dataset, reducers: Sequence[Any], on_images: Callable[[int], None], watch: PassWatch
) -> tuple[NamedMoments, dict[str, Any]]:
    """Split a stream among reducers, wait for them, merge their sums, and stop the reducers.

    If a reducer is lost, so are its sums, and the whole attempt fails. Its images are then subtracted from
    the progress again.
    """
    queue, counted = beside_driver(ReportQueue), list[int]()

    def count(images: int) -> None:
        counted.append(images)
        on_images(images)

    try:
        parts = rows.streaming_split(len(reducers))
        totals = [reducer.consume.remote(part, queue) for reducer, part in zip(reducers, parts, strict=True)]
        _wait(totals, queue, count, watch)
        images = sum(ray.get([reducer.images.remote() for reducer in reducers]))
        num_bytes = ray.get(size_of.remote(totals[0]))
        counts = {"images": images, "bytes": num_bytes, "reducers": len(reducers)}
        return ray.get(_merge_in_tree(totals)), counts
    except Exception:
        on_images(-sum(counted))
        raise
    finally:
        for reducer in reducers:
            ray.kill(reducer)


def _wait(totals: Sequence[Any], queue: Any, on_images: Callable[[int], None], watch: PassWatch) -> None:
    """Report the number of added images until every reducer is done; if one fails, raise its error."""
    waiting = list(totals)
    while waiting:
        done, waiting = ray.wait(waiting, timeout=POLL_S)
        ray.get(done)  # raises if one failed
        watch.check()
        on_images(sum(int(entry["images"]) for entry in ray.get(queue.take.remote())))


def _merge_in_tree(totals: Sequence[Any]) -> Any:
    """Merge sums in pairs, then the merged ones in pairs, and so on: no process holds more than two sums."""
    while len(totals) > 1:
        pairs = [totals[start : start + 2] for start in range(0, len(totals), 2)]
        totals = [merged.remote(*pair) if len(pair) == 2 else pair[0] for pair in pairs]
    return totals[0]
