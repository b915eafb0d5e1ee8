"""Find evaluation images that were learned from: accuracies on them say nothing of other images."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa

from ka_ray.errors import InputError
from ka_ray.features.shard_recovery import read_numbers
from ka_ray.features.store import FEATURES, IMAGES, SHARDS_KEY, read_done
from ka_ray.images.pixel_digests import DIGEST, Digests
from ka_ray.images.split import ImageSet
from ka_ray.runs.execution import is_stored
from ka_ray.runs.extension import TEACHERS
from ka_ray.runs.gate_samples import HINTS
from ka_ray.storage.files import MAX_PARALLEL_REQUESTS

LEARNED_PARTS = (FEATURES, IMAGES, f"{TEACHERS}/{IMAGES}", HINTS)
"""Folders in an output folder with images that students, teachers and gates have learned from."""

NOT_COMPARED = (
    "evaluation images were not compared with the training images by their pixels, only by their paths: an "
    "earlier version of ka_ray has stored the training images, or their files were deleted"
)
"""A note for the user."""


def count_shared_places(training: ImageSet, evaluation: ImageSet) -> int:
    """Count the evaluation images whose place, such as the path of the file, is that of a training image.

    Args:
        training: The training images.
        evaluation: The evaluation images, often of the same source.
    """
    places = [one.source.identities.places[one.ids] for one in (training, evaluation)]
    return int(np.isin(places[1], places[0]).sum())


def warn_of_learned_images(training: ImageSet, evaluation: ImageSet, learned: int = 0) -> list[str]:
    """Return a warning for the user if evaluation images were learned from; nothing if none was.

    Args:
        training: The training images.
        evaluation: The evaluation images.
        learned: Number of evaluation images that were learned from by their pixels, as far as that is known.
    """
    count, images = max(learned, count_shared_places(training, evaluation)), len(evaluation.ids)
    return [describe_learned_images(count, images)] if count else []


def describe_learned_images(count: int, images: int) -> str:
    """Return a warning for the user.

    Args:
        count: Number of evaluation images that were learned from.
        images: Number of evaluation images.

    Example:
        >>> describe_learned_images(26, 34)[:75]
        '26 of 34 evaluation images (76.5%) were learned from, by their paths or the'
    """
    return (
        f"{count:,} of {images:,} evaluation images ({count / images:.1%}) were learned from, by their paths "
        "or their pixels, so accuracies are too good. Evaluate on other images (evaluation.images), or "
        "remove images that are there twice."
    )


def read_learned_digests(folders: Iterable[Path]) -> Digests | None:
    """Read the digests of all images that were learned from.

    Args:
        folders: The output folders of a run and of those that it extends.

    Returns:
        The digests, sorted; None if they are not all known: an earlier version of ka_ray has stored images
        without, or files of stored images were deleted.

    Raises:
        InputError: A file of stored images is damaged.
    """
    digests = [np.empty(0, np.int64)]
    try:
        shards = [shard for folder in folders for shard in _list_shards(folder)]
        with ThreadPoolExecutor(MAX_PARALLEL_REQUESTS) as pool:  # an object store answers many at once
            digests += pool.map(_read_digests, shards)
    except (KeyError, FileNotFoundError):
        return None
    return np.unique(np.concatenate(digests))


def _list_shards(folder: Path) -> Iterator[Path]:
    for part in LEARNED_PARTS:
        if is_stored(folder / part):
            yield from (folder / part / name for name in read_done(folder / part)[SHARDS_KEY])


def _read_digests(shard: Path) -> Digests:
    try:
        return read_numbers(shard, DIGEST)
    except (pa.ArrowException, OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # it is gone, or the disk failed; Arrow's own OSErrors, about the content, have no number
        raise InputError(f"features {shard} are damaged ({error})") from None
