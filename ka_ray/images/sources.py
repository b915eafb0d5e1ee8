"""What every image source offers, and the loop that reads one chunk of it.

Shapes: n images of a chunk, H = W = size pixels.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ka_ray.config import JOB_FOLDERS, ImagesConfig
from ka_ray.images.decode import decode

Columns = dict[str, npt.NDArray[Any]]
Ids = npt.NDArray[np.int64]

BATCH_BYTES = 32 * 1024**2
"""Decoded bytes that one yielded batch may hold: bounds the memory of a reading task."""


@dataclass(frozen=True)
class Chunk:
    """What one task reads: the images ``first_id`` to ``first_id + num_images - 1`` of a source."""

    first_id: int
    num_images: int
    payload: Any


@dataclass(frozen=True)
class Encoded:
    """One image as the source holds it: encoded bytes, or pixels ``[H, W, 3]`` uint8."""

    image_id: int
    name: str
    content: bytes | npt.NDArray[np.uint8]
    label: str


@dataclass(frozen=True)
class Source:
    """A listed source of images. Image ids count from 0 in the source's own order."""

    chunks: list[Chunk]
    read: "SourceReader"
    class_names: tuple[str, ...] | None = field(default=None)

    @property
    def num_images(self) -> int:
        """How many images the source lists, readable or not."""
        return sum(chunk.num_images for chunk in self.chunks)

    @property
    def digest(self) -> str:
        """The SHA-256 of what is listed where: with another one, ids mean other images.

        What travels with a job lies in another folder every time; that folder does not count.
        """
        listed = sha256()
        with np.printoptions(threshold=sys.maxsize):  # the ids of a mixture, all of them
            for chunk in self.chunks:
                text = f"{chunk.first_id} {chunk.num_images} {chunk.payload!r}\n"
                listed.update(JOB_FOLDERS.sub("", text).encode())
        return listed.hexdigest()


class SourceReader(Protocol):
    """Reads the images of one chunk whose ids are wanted; runs in a worker, so it must pickle."""

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
        """Yield the wanted images, in the order of their ids."""


def sample_ids(num_images: int, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Choose ``limit`` of the ids 0 ... num_images - 1 at random (all where None), sorted."""
    if limit is None or limit >= num_images:
        return np.arange(num_images)
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:limit])


def read_chunk(
    config: ImagesConfig,
    read: SourceReader,
    chunk: Chunk,
    ids: npt.NDArray[np.int64],
    only_classes: frozenset[str] | None,
    on_unreadable: Callable[[int, str], None],
) -> Iterator[Columns]:
    """Decode the wanted images of one chunk, in batches of bounded size.

    Args:
        config: Gives size and resizing.
        read: The source's reader.
        chunk: Which images.
        ids: Wanted image ids, sorted.
        only_classes: Keep images with these labels alone; None keeps all.
        on_unreadable: Told (image id, name with the reason) of each image that cannot be decoded;
            may raise to stop.

    Yields:
        ``image_id [n]`` int64, ``image [n, 3, H, W]`` uint8, ``label [n]`` str ('' where there is none).
    """
    batch_images = max(1, BATCH_BYTES // (3 * config.size**2))
    wanted = frozenset(ids[np.searchsorted(ids, chunk.first_id) :][: chunk.num_images].tolist())
    rows: list[tuple[int, npt.NDArray[np.uint8], str]] = []
    for encoded in read(chunk, wanted.__contains__):
        if only_classes is not None and encoded.label not in only_classes:
            continue
        try:
            image = decode(encoded.content, config.size, config.resize)
        except Exception as error:  # decoders raise many kinds; each means: this image is unreadable
            on_unreadable(encoded.image_id, f"{encoded.name} ({error})")
            continue
        rows.append((encoded.image_id, image, encoded.label))
        if len(rows) == batch_images:
            yield _columns(rows)
            rows = []
    if rows:
        yield _columns(rows)


def _columns(rows: list[tuple[int, npt.NDArray[np.uint8], str]]) -> Columns:
    image_ids, images, labels = zip(*rows, strict=True)
    return {
        "image_id": np.asarray(image_ids, dtype=np.int64),
        "image": np.stack(images),
        "label": np.asarray(labels, dtype=object),
    }
