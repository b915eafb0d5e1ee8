"""Score images with Ray Data, and merge the counts of all batches.

Shapes: n images of a batch, K classes.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from ka_ray.config import DESCRIPTIVE, Resources
from ka_ray.distributed.count_sums import CountSums
from ka_ray.distributed.evaluator import TEACHERS_ONLY, Evaluation, Evaluator
from ka_ray.distributed.images import Columns, check_any_readable, read_images
from ka_ray.distributed.resources import remote_options
from ka_ray.distributed.restarts import StartCount, actor_of
from ka_ray.distributed.retries import repeat_until_complete
from ka_ray.distributed.stalled import start_watch
from ka_ray.distributed.teachers import list_networks, run_teachers
from ka_ray.distributed.work_clock import record_work
from ka_ray.features.stack import EMBEDDING
from ka_ray.images import Ids, Source
from ka_ray.metrics import Counts
from ka_ray.teachers.reading import ReadSpec


class EvaluatorActor:
    """An evaluator in an actor of Ray Data, whose restarts are limited.

    Args:
        work: The students and label sets, as in :class:`Evaluator`.
        share: The resources of the actor.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass, which counts the starts.
    """

    def __init__(self, work: Evaluation, share: Resources, monitor: Any) -> None:
        self._starts, self._monitor = StartCount(monitor, actor_of("the evaluation")), monitor
        if not self._starts.exhausted:
            with record_work(monitor, "load students"):
                self._evaluator = Evaluator(work, share)

    def __call__(self, batch: Columns) -> Columns:
        """Evaluate a batch; see :class:`Evaluator`."""
        self._starts.check()
        with record_work(self._monitor, "run students and count"):
            return self._evaluator(batch)


def evaluate_images(
    work: Evaluation, on_images: Callable[[int], None]
) -> tuple[dict[str, Counts], dict[str, Any]]:
    """Evaluate students and teachers on every image exactly once.

    Args:
        work: What is evaluated.
        on_images: Called with the number of images that were evaluated since the last call.

    Returns:
        The merged counts of every student (without students, those of :data:`TEACHERS_ONLY`), and the
        content of a :class:`ka_ray.reports.summaries.EvaluationPass` with two more keys. ``labels``: label,
        also if it is no class, -> its number of images; the empty label is that of images without one.
        ``disputes``: the most disputed images, a list of :class:`ka_ray.disputes.Dispute`.

    Raises:
        InputError: Too many images are unreadable, or all of them.
        ClusterError: There was no progress for ``ray.timeout_s``.
    """
    began = time.perf_counter()
    sums = CountSums(work.label_sets, work.students or (TEACHERS_ONLY,), work.learned)
    # Nothing is stored here, so gates see embeddings that are rounded as little as those they learned from.
    exact = frozenset({EMBEDDING})
    reading = ReadSpec({}, {}, work.scores, work.read_columns, last_layers=work.last_layers, float32=exact)
    watch = start_watch("evaluation", work.images, list_networks(work.teachers, reading), work.pools)

    def one_pass(ids: Ids) -> None:
        part = replace(work, images=work.images.with_ids(ids))
        for row in watch.read_rows(_judged(part, reading, watch.monitor)):
            on_images(sums.add(row))

    repeat_until_complete(work.images.ids, sums.find_judged, one_pass, watch.monitor)
    summary = ray.get(watch.monitor.summary.remote())
    summary |= {"labels": sums.labels, "learned_images": sums.learned_images, "disputes": sums.disputes}
    judged = len(sums.find_judged())
    check_any_readable(judged, summary["unreadable"])
    return sums.total, summary | {"images": judged, "seconds": time.perf_counter() - began}


def _judged(work: Evaluation, reading: ReadSpec, monitor: Any) -> ray.data.Dataset:
    """Stream images through the teachers to the evaluators, whose counts anyone can add up in any order."""
    pools, num_networks = work.pools, len(work.teachers) + (DESCRIPTIVE in work.last_layers)
    rows = read_images(work.images, monitor, pools, work.only_classes)
    rows = run_teachers(rows, work.teachers, pools, reading, monitor)
    count, share = pools.evaluators(num_networks)
    # The evaluators need no list of the images, which may be long.
    unlisted = replace(work.images, source=Source([], work.images.source.read), ids=work.images.ids[:0])
    return rows.map_batches(
        EvaluatorActor,
        fn_constructor_args=(
            replace(work, images=unlisted, learned=None),
            share,
            monitor,
        ),
        batch_size=pools.batch_size,
        compute=ActorPoolStrategy(size=count),
        **remote_options(share),
    )
