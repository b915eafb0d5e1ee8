"""What every image source offers, and the loop that reads one chunk of it.

Shapes: n images of a chunk, H = W = size in pixels.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ka_ray.config import JOB_FOLDERS, ImagesConfig, Preprocessing
from ka_ray.images.decode import decode_image
from ka_ray.images.identity import Identities, identify, join
from ka_ray.images.views import IMAGE, View, make_view

Columns = dict[str, npt.NDArray[Any]]
"""Column name -> values, one per image."""

Ids = npt.NDArray[np.int64]
"""Image ids."""

OWNER = "owner"
"""Name of the column with the teacher whose classes an image shows."""

BATCH_BYTES = 32 * 1024**2
"""Largest number of decoded bytes in one batch of :func:`read_chunk`: bounds the memory of a reading task."""


@dataclass(frozen=True)
class Chunk:
    """The images that one task reads: those with the ids ``first_id`` to ``first_id + num_images - 1``.

    Attributes:
        first_id: Id of the first image.
        num_images: Number of images.
        payload: What the source's reader needs to find them, e.g. file names; it must pickle.
        stamps: Numbers that change with the images, such as the sizes of their files in bytes; one per image,
            or one for the chunk. They are not in the payload, because a source's digest must stay the same.
    """

    first_id: int
    num_images: int
    payload: Any
    stamps: tuple[int, ...] = ()


@dataclass(frozen=True)
class EncodedImage:
    """One image as its source stores it.

    Attributes:
        image_id: Its id in the source.
        name: Where it is, for messages, e.g. its path.
        content: The bytes of an image file, RGB pixels ``[H, W, 3]`` uint8, or a Pillow image; empty bytes if
            unreadable.
        label: Name of its class in Unicode's composed form (NFC); empty if it has none.
        owner: Name of the teacher whose classes it shows; empty if that is not known.
    """

    image_id: int
    name: str
    content: bytes | npt.NDArray[np.uint8] | Image.Image
    label: str
    owner: str = ""


def identify_chunk(chunk: Chunk) -> Identities:
    """Identify the images of a chunk by its payload, which differs from that of every other chunk."""
    return identify([(repr(chunk.payload), "", chunk.stamps[0] if chunk.stamps else -1)], [chunk.num_images])


@dataclass(frozen=True)
class Source:
    """A source whose images are listed, but not read yet. Their ids count from 0, always in the same order.

    Attributes:
        chunks: All images, in the order of their ids.
        read: Reads the images of a chunk.
        class_names: The classes that the source lists; None if it does not know them before it is read.
        note: What the user should know of the listing, such as files that were left out; empty if nothing.
        list_labels: Returns the labels of all images of some of the chunks, in their order, without reading
            images; None if that would take as long as reading them. It must pickle.
        identify: Returns which images those of a chunk are, wherever they stand in the list.
    """

    chunks: list[Chunk]
    read: "SourceReader"
    class_names: tuple[str, ...] | None = field(default=None)
    note: str = ""
    list_labels: "Callable[[Sequence[Chunk]], list[str]] | None" = None
    identify: Callable[[Chunk], Identities] = identify_chunk

    @property
    def num_images(self) -> int:
        """Number of images that the source lists, readable or not."""
        return sum(chunk.num_images for chunk in self.chunks)

    @cached_property
    def labels(self) -> list[str] | None:
        """The labels of all images, in the order of the ids; None if the source does not list them."""
        return None if self.list_labels is None else self.list_labels(self.chunks)

    @cached_property
    def identities(self) -> Identities:
        """Which image has which id: a place and a stamp for each, in the order of the ids."""
        return join(map(self.identify, self.chunks))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the list of images; if it changes, the same ids mean other images."""
        listed = sha256()
        with np.printoptions(threshold=sys.maxsize):  # else numpy shortens long arrays of ids to "..."
            for chunk in self.chunks:
                text = f"{chunk.first_id} {chunk.num_images} {chunk.payload!r}\n"
                # Files uploaded with a job are in another folder for each job, so that folder is left out.
                listed.update(JOB_FOLDERS.sub("", text).encode())
        return listed.hexdigest()


def list_no_labels(chunks: Sequence[Chunk]) -> list[str]:
    """Return that no image has a label, for :attr:`Source.list_labels` of sources without labels.

    Args:
        chunks: The chunks of the images.
    """
    return [""] * sum(chunk.num_images for chunk in chunks)


class SourceReader(Protocol):
    """Reads the wanted images of one chunk. It runs in workers, so it must pickle."""

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted images of a chunk, in the order of their ids.

        Args:
            chunk: A chunk of the reader's source.
            wanted: Whether to read the image with this id.
        """


def sample_ids(num_images: int, limit: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Sample image ids at random, without repetition.

    Args:
        num_images: Number of images; their ids are 0 ... num_images - 1.
        limit: Number of ids to sample; None for all. With the same seed, a smaller sample is a subset of a
            larger one.
        seed: Seed of the random choice.

    Returns:
        The ids, sorted.
    """
    if limit is None or limit >= num_images:
        return np.arange(num_images)
    # The beginning of one permutation: this makes smaller samples subsets of larger ones.
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:limit])


def read_chunk(
    config: ImagesConfig,
    read: SourceReader,
    chunk: Chunk,
    ids: npt.NDArray[np.int64],
    only_classes: frozenset[str] | None,
    on_unreadable: Callable[[int, str], None],
    views: Mapping[str, View] | None = None,
) -> Iterator[Columns]:
    """Read and decode the wanted images of one chunk, in batches of bounded size.

    Args:
        config: The config's ``images`` section, which says how files are decoded.
        read: The source's reader.
        chunk: The chunk to read.
        ids: Ids of all wanted images of the source, sorted.
        only_classes: Keep only images with these labels; None keeps all.
        on_unreadable: Called for each image that cannot be decoded, with its id and a text that contains its
            name and the reason; may raise to stop reading.
        views: Column -> view of the decoded image; None: the column ``image``, as the config says.

    Yields:
        ``image_id [n]`` int64, a column ``[n, C, H, W]`` uint8 per view, ``label [n]`` str (empty if none);
        and ``owner [n]`` str if the config names owners.
    """
    views = views or {IMAGE: make_view(Preprocessing(), config)}
    batch_images = max(1, BATCH_BYTES // sum(math.prod(view.shape) for view in views.values()))
    rows = _decode_wanted(config, read, chunk, ids, only_classes, on_unreadable, list(views.values()))
    while batch := list(islice(rows, batch_images)):
        columns = _to_columns(batch, list(views))
        yield columns if config.has_owners else {k: c for k, c in columns.items() if k != OWNER}


_Row = tuple[int, list[npt.NDArray[np.uint8]], str, str]
"""Id, views, label and owner of one image."""


def _decode_wanted(
    config: ImagesConfig,
    read: SourceReader,
    chunk: Chunk,
    ids: npt.NDArray[np.int64],
    only_classes: frozenset[str] | None,
    on_unreadable: Callable[[int, str], None],
    views: Sequence[View],
) -> Iterator[_Row]:
    # Only `num_images` ids can be in this chunk. The array of all ids may have millions: too many for a set.
    wanted = frozenset(ids[np.searchsorted(ids, chunk.first_id) :][: chunk.num_images].tolist())
    for encoded in read(chunk, wanted.__contains__):
        if only_classes is not None and encoded.label not in only_classes:
            continue
        try:
            # Every view is made of the decoded original: resizing an image twice would blur it.
            original = decode_image(encoded.content, config.decoding)
            images = [view.apply(original) for view in views]
        except Exception as error:  # decoders raise many types; each means that this image is unreadable
            on_unreadable(encoded.image_id, f"{encoded.name} ({error})")
            continue
        yield encoded.image_id, images, encoded.label, encoded.owner or config.owner or ""


def _to_columns(rows: list[_Row], views: list[str]) -> Columns:
    image_ids, images, labels, owners = zip(*rows, strict=True)
    stacked = {name: np.stack(column) for name, column in zip(views, zip(*images, strict=True), strict=True)}
    ids = np.asarray(image_ids, dtype=np.int64)
    texts = {"label": np.asarray(labels, dtype=object), OWNER: np.asarray(owners, dtype=object)}
    return {"image_id": ids, **stacked, **texts}
