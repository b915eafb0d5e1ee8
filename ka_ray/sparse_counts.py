"""Numbers of images in a vector or matrix that is nearly empty, such as a confusion matrix of many classes.

With K = 10,000 classes a dense confusion matrix takes 800 MB, but 64 images fill at most 64 of its cells.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

Scores = npt.NDArray[np.floating[Any]]
"""Pre-softmax outputs, one row per image."""


@dataclass(frozen=True, eq=False)
class SparseCounts:
    """Numbers of images of which only those that are not 0 are kept.

    Attributes:
        shape: ``(K,)`` for a vector, ``(K, K)`` for a matrix.
        cells: Positions of the N numbers in the flattened array, ascending, ``[N]``.
        images: The numbers, ``[N]``.
    """

    shape: tuple[int, ...]
    cells: Integers
    images: Integers

    @staticmethod
    def zeros(*shape: int) -> "SparseCounts":
        """Return the counts of no images.

        Args:
            shape: Shape of the array.
        """
        return SparseCounts(shape, np.zeros(0, np.int64), np.zeros(0, np.int64))

    @staticmethod
    def of(shape: tuple[int, ...], *indices: Integers) -> "SparseCounts":
        """Count the images of each cell.

        Args:
            shape: Shape of the array.
            indices: For each axis, the index of every image, ``[B]``.
        """
        cells, images = np.unique(np.ravel_multi_index(indices, shape), return_counts=True)
        return SparseCounts(shape, cells.astype(np.int64), images.astype(np.int64))

    @staticmethod
    def from_dense(array: npt.ArrayLike) -> "SparseCounts":
        """Return the counts of a dense array."""
        dense = np.asarray(array)
        cells = np.flatnonzero(dense)
        return SparseCounts(dense.shape, cells, dense.reshape(-1)[cells].astype(np.int64))

    @staticmethod
    def sum(parts: Iterable["SparseCounts"]) -> "SparseCounts":
        """Add up at least one array of counts, all of the same shape."""
        listed = list(parts)
        shapes = {part.shape for part in listed}
        if len(shapes) != 1:
            raise ValueError(f"counts of the shapes {sorted(shapes)} cannot be added")
        cells, position = np.unique(np.concatenate([part.cells for part in listed]), return_inverse=True)
        images = np.zeros(len(cells), np.int64)
        np.add.at(images, position, np.concatenate([part.images for part in listed]))
        return SparseCounts(listed[0].shape, cells, images)

    def __add__(self, other: "SparseCounts") -> "SparseCounts":
        return SparseCounts.sum((self, other))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseCounts):
            return NotImplemented
        same = np.array_equal(self.cells, other.cells) and np.array_equal(self.images, other.images)
        return self.shape == other.shape and same

    __hash__ = None  # type: ignore[assignment]  # the arrays can be changed

    @property
    def indices(self) -> tuple[npt.NDArray[np.intp], ...]:
        """For each axis, the indices of the numbers that are not 0, ``[N]``."""
        return tuple(np.unravel_index(self.cells, self.shape))

    @property
    def total(self) -> int:
        """The number of all images."""
        return int(self.images.sum())

    @property
    def diagonal(self) -> int:
        """The number of images on the diagonal of a matrix: those that were predicted correctly."""
        rows, columns = self.indices
        return int(self.images[rows == columns].sum())

    @property
    def largest(self) -> int:
        """The largest number."""
        return int(self.images.max(initial=0))

    def to_dense(self, group: int = 1) -> npt.NDArray[Any]:
        """Return the dense array, with the numbers of neighbouring indices added up.

        Args:
            group: How many indices of every axis become one.
        """
        dense = np.zeros([-(-size // group) for size in self.shape], np.int64)
        np.add.at(dense, tuple(index // group for index in self.indices), self.images)
        return dense


def confusion(targets: Integers, scores: Scores | None, num_classes: int) -> SparseCounts:
    """Compute the confusion matrix of the images whose class is known.

    Args:
        targets: The true class of every image, ``[B]``; -1 where it is unknown.
        scores: Scores ``[B, K]``, whose largest is the predicted class; None if nothing was predicted.
        num_classes: K.

    Returns:
        Numbers of images, rows true classes, columns predicted classes, ``[K, K]``.
    """
    if scores is None:
        return SparseCounts.zeros(num_classes, num_classes)
    known = targets >= 0
    return SparseCounts.of((num_classes, num_classes), targets[known], scores.argmax(1)[known])


def count_predicted(scores: Scores | None, num_classes: int) -> SparseCounts:
    """Count how often each class is predicted.

    Args:
        scores: Scores ``[B, K]``, whose largest is the predicted class; None if nothing was predicted.
        num_classes: K.

    Returns:
        Numbers of images, ``[K]``.
    """
    if scores is None:
        return SparseCounts.zeros(num_classes)
    return SparseCounts.of((num_classes,), scores.argmax(1))
