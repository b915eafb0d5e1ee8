"""Evaluate batches of images: what is counted of them in the processes of a pass.

Shapes: B images of a batch, K classes.
"""

import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ka_ray.amalgamation import LabelSets
from ka_ray.amalgamation.gated_scores import compute_energies
from ka_ray.config import Resources, ScoresConfig, TeacherConfig
from ka_ray.disputes import Dispute, find_disputes
from ka_ray.distributed.device import actor_device
from ka_ray.distributed.images import Columns
from ka_ray.distributed.resources import Pools
from ka_ray.features.stack import EMBEDDING, SCORES, TARGETS, feature_column
from ka_ray.gates import GateSample, OwnerGate
from ka_ray.images.pixel_digests import Digests, digest_pixels
from ka_ray.images.split import ImageSet
from ka_ray.metrics import Counts, Gated, count_batch
from ka_ray.numerics.host_copies import to_device
from ka_ray.numerics.memory_format import move_network
from ka_ray.sparse_counts import Scores
from ka_ray.student import Student, load_student
from ka_ray.student.graph_student import GraphStudent

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
        disputed: The student whose most disputed images are kept; empty: of no student.
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
    disputed: str = ""


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
        """Turn a batch into one row: counts of every student, its images, and the most disputed ones."""
        own = {column: self._teachers_scores(batch, column) for column in (SCORES, TARGETS)}
        images = to_device(batch["image"], self._device)
        amalgamated: dict[str, list[Scores | None]] = {}
        counts, disputes = {}, list[Dispute]()
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
            followed = both[0] if gated is None else gated.scores
            if name == self._work.disputed and scores is not None and followed is not None:
                shown = batch["image_id"], batch["label"], batch["image"]
                disputes = find_disputes(*shown, scores, followed, label_sets.classes)
        ids, digests = np.empty(1, dtype=object), np.empty(1, dtype=object)
        ids[0], digests[0] = np.asarray(batch["image_id"], np.int64), digest_pixels(batch["image"])
        packed = np.array([pickle.dumps(counts)], dtype=object)
        # In bytes, as the counts are: Arrow has no column of dicts with any keys.
        labels = np.array([pickle.dumps(Counter(batch["label"].tolist()))], dtype=object)
        kept = np.array([pickle.dumps(disputes)], dtype=object)
        return {"counts": packed, "image_ids": ids, "labels": labels, "digests": digests, "disputes": kept}

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
