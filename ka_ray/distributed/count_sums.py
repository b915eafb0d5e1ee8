"""Add up on the driver what the evaluators of a pass count, batch by batch."""

import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ka_ray.amalgamation import LabelSets
from ka_ray.disputes import Dispute, most_disputed
from ka_ray.images import Ids
from ka_ray.images.pixel_digests import Digests
from ka_ray.metrics import Counts

MAX_WAITING = 256
"""Number of batches whose counts are added up at once. Each sum goes through all cells that are not 0."""


class CountSums:
    """The counts of every student on the images that were judged so far.

    Args:
        label_sets: The classes of the teachers.
        students: The names of the students.
        learned: Digests of images that were learned from, sorted; None if they are not known.

    Attributes:
        labels: Label -> number of its images so far; the empty label is that of images without one.
        learned_images: Number of images so far that were learned from.
        disputes: The most disputed images so far, the surest first.
    """

    def __init__(
        self, label_sets: LabelSets, students: Iterable[str], learned: Digests | None = None
    ) -> None:
        blank = Counts.zeros(len(label_sets.classes), len(label_sets.by_teacher))
        self._counts = {name: [blank] for name in students}
        self._judged = set[int]()
        self._learned = learned
        self.labels, self.learned_images = Counter[str](), 0
        self.disputes: list[Dispute] = []

    def add(self, row: Mapping[str, Any]) -> int:
        """Add the counts of a batch.

        Args:
            row: What an evaluator returned: the pickled ``counts`` of every student, the ``image_ids``, the
                pickled counts of ``labels``, the ``digests`` of the images, and the pickled ``disputes``.

        Returns:
            The number of its images.
        """
        parts: dict[str, Counts] = pickle.loads(row["counts"])
        seen = row["image_ids"].tolist()
        if twice := self._judged.intersection(seen):
            raise AssertionError(f"images were judged twice, among them {min(twice)}")
        self._judged.update(seen)
        self.labels.update(pickle.loads(row["labels"]))
        self.disputes = most_disputed([*self.disputes, *pickle.loads(row["disputes"])])
        if self._learned is not None and len(self._learned):
            # Sorted, so that a batch costs no pass over the digests of a million images.
            digests = np.asarray(row["digests"], np.int64)
            at = np.searchsorted(self._learned, digests).clip(max=len(self._learned) - 1)
            self.learned_images += int((self._learned[at] == digests).sum())
        for name, waiting in self._counts.items():
            waiting.append(parts[name])
            if len(waiting) > MAX_WAITING:
                waiting[:] = [Counts.sum(waiting)]
        return len(seen)

    def find_judged(self) -> Ids:
        """Return the ids of the images that were judged."""
        return np.fromiter(self._judged, np.int64)

    @property
    def total(self) -> dict[str, Counts]:
        """The counts of every student."""
        return {name: Counts.sum(waiting) for name, waiting in self._counts.items()}
