"""Score images with Ray Data, and merge the counts of all batches.

Shapes: n images of a batch, K classes.
"""

import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import torch
from ray.data import ActorPoolStrategy

from ka_ray.amalgamation import LabelSets
from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.config import DESCRIPTIVE, Resources, ScoresConfig, TeacherConfig
from ka_ray.distributed.count_sums import CountSums
from ka_ray.distributed.device import actor_device
from ka_ray.distributed.images import Columns, check_any_readable, read_images
from ka_ray.distributed.resources import Pools, remote_options
from ka_ray.distributed.restarts import StartCount, actor_of
from ka_ray.distributed.retries import repeat_until_complete
from ka_ray.distributed.stalled import start_watch
from ka_ray.distributed.teachers import list_networks, run_teachers
from ka_ray.features.stack import EMBEDDING, SCORES, TARGETS, feature_column
from ka_ray.gates import GateSample, OwnerGate
from ka_ray.images import Ids, Source
from ka_ray.images.pixel_digests import Digests, digest_pixels
from ka_ray.images.split import ImageSet
from ka_ray.metrics import Counts, Gated, count_batch
from ka_ray.numerics.host_copies import to_device
from ka_ray.numerics.memory_format import move_network
from ka_ray.sparse_counts import Scores
from ka_ray.student import Student, load_student
from ka_ray.student.graph_student import GraphStudent
from ka_ray.teachers.reading import ReadSpec

TEACHERS_ONLY = "teachers"
"""The key of the counts if only the teachers are evaluated."""


@dataclass(frozen=True)
class Evaluation:
    """Which students and teachers are evaluated, and on which images.

    Attributes:
        images: The images.
        label_sets: The classes of the teachers, and the rule that puts their scores together if there is no
            student; a student has its own.
        teachers: The teachers; empty to evaluate only students.
        students: Name -> folder of each student; empty to evaluate only the teachers.
        pools: The processes of the pass.
        scores: The views over which scores are averaged; the averages are counted in addition.
        only_classes: Keep only images with these labels; None keeps all.
        read_columns: Teacher, or descriptive network -> column with its images; the column ``image`` for
            those not named.
        gates: Student -> the gate of the scores that it learned from; students without one are left out.
        last_layers: Teacher, or descriptive network -> path of its last layer, for gates.
        trust: Whether functions that the students' folders name may run; without it their graphs do.
        learned: Digests of images that were learned from, which are counted; None if they are not known.
    """

    images: ImageSet
    label_sets: LabelSets
    teachers: Sequence[TeacherConfig]
    students: Mapping[str, Path]
    pools: Pools = field(default_factory=Pools)
    scores: ScoresConfig = field(default_factory=ScoresConfig)
    only_classes: frozenset[str] | None = None
    read_columns: Mapping[str, str] = field(default_factory=dict)
    gates: Mapping[str, OwnerGate] = field(default_factory=dict)
    last_layers: Mapping[str, str] = field(default_factory=dict)
    trust: bool = False
    learned: Digests | None = None


class Evaluator:
    """Scores batches with every student, and counts them against labels and teachers.

    Args:
        work: The students and label sets; its images are not used.
        share: The resources of the process.
    """

    def __init__(self, work: Evaluation, share: Resources) -> None:
        self._device, self._work = actor_device(share), work
        self._students: dict[str, Student | GraphStudent | None] = {
            name: move_network(load_student(folder, trust=work.trust), self._device)
            for name, folder in work.students.items()
        } or {TEACHERS_ONLY: None}

    def __call__(self, batch: Columns) -> Columns:
        """Turn a batch into one row: the pickled counts of every student, and what its images are."""
        own = {column: self._teachers_scores(batch, column) for column in (SCORES, TARGETS)}
        images = to_device(batch["image"], self._device)
        amalgamated: dict[str, list[Scores | None]] = {}
        counts = {}
        for name, student in self._students.items():
            label_sets = self._work.label_sets if student is None else student.spec.unified_label_sets
            gate = self._work.gates.get(name)
            if gate is not None:  # beside the gated ensemble stands that of the scores as they are
                label_sets = gate.label_sets
            key = label_sets.rule_description
            if key not in amalgamated:
                amalgamated[key] = [
                    None if scores is None else label_sets.amalgamate(scores).numpy()
                    for scores in own.values()
                ]
            scores = None if student is None else self._scores(student, images)
            gated = None if gate is None else _apply_gate(gate, batch, own[SCORES])
            both = amalgamated[key]
            counts[name] = self._count(label_sets, scores, batch["label"], own[SCORES], gated, *both)
        ids, digests = np.empty(1, dtype=object), np.empty(1, dtype=object)
        ids[0], digests[0] = np.asarray(batch["image_id"], np.int64), digest_pixels(batch["image"])
        packed = np.array([pickle.dumps(counts)], dtype=object)
        # In bytes, as the counts are: Arrow has no column of dicts with any keys.
        labels = np.array([pickle.dumps(Counter(batch["label"].tolist()))], dtype=object)
        return {"counts": packed, "image_ids": ids, "labels": labels, "digests": digests}

    def _teachers_scores(self, batch: Columns, column: str) -> torch.Tensor | None:
        names = [feature_column(column, teacher.name) for teacher in self._work.teachers]
        if not names or names[0] not in batch:
            return None
        return torch.cat([torch.tensor(batch[name]) for name in names], dim=1)

    def _count(
        self,
        label_sets: LabelSets,
        student: Scores | None,
        labels: Any,
        own: torch.Tensor | None,
        gated: Gated | None,
        ensemble: Scores | None,
        over_views: Scores | None,
    ) -> Counts:
        index = {name: i for i, name in enumerate(label_sets.classes)}
        return count_batch(
            targets=np.array([index.get(label, -1) for label in labels], np.int64),
            student=student,
            ensemble=ensemble,
            teachers=[] if own is None else [part.numpy() for part in label_sets.split(own)],
            columns=[label_sets.columns(name) for name in label_sets.by_teacher],
            over_views=over_views,
            gated=gated,
        )

    def _scores(self, student: Student | GraphStudent, images: torch.Tensor) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            scores: torch.Tensor = student(images)
        array: npt.NDArray[np.float32] = scores.float().cpu().numpy()
        return array


def _apply_gate(gate: OwnerGate, batch: Columns, scores: torch.Tensor | None) -> Gated | None:
    if scores is None:
        return None
    embeddings = {t: torch.tensor(batch[feature_column(EMBEDDING, t)]) for t in gate.sources}
    sample = GateSample(embeddings, scores)
    before = compute_energies(gate.label_sets, scores).argmax(dim=1)
    owners = gate.log_owners(sample).argmax(dim=1)
    return Gated(gate.amalgamate(sample).numpy(), before.numpy(), owners.numpy())


class EvaluatorActor:
    """An evaluator in an actor of Ray Data, whose restarts are limited.

    Args:
        work: The students and label sets, as in :class:`Evaluator`.
        share: The resources of the actor.
        monitor: The :class:`ka_ray.distributed.actors.PassMonitor` of the pass, which counts the starts.
    """

    def __init__(self, work: Evaluation, share: Resources, monitor: Any) -> None:
        self._starts = StartCount(monitor, actor_of("the evaluation"))
        self._evaluator = None if self._starts.exhausted else Evaluator(work, share)

    def __call__(self, batch: Columns) -> Columns:
        """Evaluate a batch; see :class:`Evaluator`."""
        self._starts.check()
        assert self._evaluator is not None
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
        content of a :class:`ka_ray.reports.summaries.EvaluationPass` with one more key, ``labels``: label,
        also if it is no class, -> its number of images; the empty label is that of images without one.

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
    summary |= {"labels": sums.labels, "learned_images": sums.learned_images}
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
