"""The image source that combines others: the images of its parts, one part after another, under new ids."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from ka_ray.config import (
    DatasetsImages,
    DigitsImages,
    FolderImages,
    ListImages,
    MixedImages,
    ParquetImages,
    TorchvisionImages,
    WebDatasetImages,
)
from ka_ray.errors import InputError
from ka_ray.images.digits import list_digits
from ka_ray.images.file_list import list_files_of_list
from ka_ray.images.folder import list_folder
from ka_ray.images.identity import Identities
from ka_ray.images.parquet import list_parquet
from ka_ray.images.saved_datasets import list_saved_dataset
from ka_ray.images.sources import Chunk, EncodedImage, Ids, Source, SourceReader, sample_ids
from ka_ray.images.torchvision_datasets import list_torchvision
from ka_ray.images.webdataset import list_webdataset

PLAIN_SOURCES: dict[type[Any], Callable[[Any], Source]] = {
    DigitsImages: list_digits,
    FolderImages: list_folder,
    ParquetImages: list_parquet,
    ListImages: list_files_of_list,
    DatasetsImages: list_saved_dataset,
    WebDatasetImages: list_webdataset,
    TorchvisionImages: list_torchvision,
}
"""Config section -> the function that lists its images, for the sources that can be parts of a mixture."""


@dataclass(frozen=True)
class PartChunk:
    """The payload of a mixture's chunk.

    Attributes:
        part: Index of the part in the config.
        chunk: The part's own chunk.
        ids: The ids, within the part, of the chunk's images that belong to the mixture, sorted. The j-th of
            them has the id ``first_id + j`` in the mixture.
    """

    part: int
    chunk: Chunk
    ids: Ids


def list_mixed(config: MixedImages) -> Source:
    """List the images of every part; images beyond a part's limit are left out and get no id.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: A part has no images, or does not match its config section; the message names the part.
    """
    chunks: list[Chunk] = []
    parts: list[Source] = []
    first_id = 0
    for number, part in enumerate(config.parts):
        with _part_in_errors(number):
            parts.append(PLAIN_SOURCES[type(part)](part))
        # A fixed seed: which images a part contributes must not change with the run's own seed.
        chosen = sample_ids(parts[-1].num_images, part.limit, seed=0)
        for chunk in parts[-1].chunks:
            # Both are sorted, so the chosen ids of a chunk are one slice; a chunk without any is dropped.
            start, end = np.searchsorted(chosen, [chunk.first_id, chunk.first_id + chunk.num_images])
            if start < end:
                payload = PartChunk(number, chunk, chosen[start:end])
                chunks.append(Chunk(first_id, len(payload.ids), payload))
                first_id += len(payload.ids)
    note = "; ".join(part.note for part in parts if part.note)
    reader = MixedReader(tuple(part.read for part in parts), tuple(part.owner or "" for part in config.parts))
    listers = [part.list_labels for part in parts if part.list_labels is not None]
    list_labels = MixedLabels(tuple(listers)) if len(listers) == len(parts) else None
    identify = MixedIdentities(tuple(part.identify for part in parts))
    return Source(chunks, reader, _merge_classes(parts), note, list_labels, identify)


@dataclass(frozen=True)
class MixedIdentities:
    """Identifies images as their part does; an object and not a closure, because sources are pickled.

    Attributes:
        parts: The function of each part, in the order of the config.
    """

    parts: tuple[Callable[[Chunk], Identities], ...]

    def __call__(self, chunk: Chunk) -> Identities:
        """Return which images those of a chunk are."""
        payload: PartChunk = chunk.payload
        return self.parts[payload.part](payload.chunk).take(payload.ids - payload.chunk.first_id)


def _merge_classes(parts: list[Source]) -> tuple[str, ...] | None:
    """Return the classes of all parts, each once, in the order of the parts; None if a part's are unknown."""
    names: dict[str, None] = {}  # a set that keeps the order
    for part in parts:
        if part.class_names is None:
            return None
        names |= dict.fromkeys(part.class_names)
    return tuple(names)


@dataclass(frozen=True)
class MixedLabels:
    """Lists the labels of a mixture; an object and not a closure, because it is pickled with its source.

    Attributes:
        parts: What lists the labels of each part, in the order of the config.
    """

    parts: tuple[Callable[[Sequence[Chunk]], list[str]], ...]

    def __call__(self, chunks: Sequence[Chunk]) -> list[str]:
        """Return the labels of the images of some chunks."""
        labels: list[str] = []
        for part, of_part in groupby((chunk.payload for chunk in chunks), lambda payload: payload.part):
            payloads = list(of_part)
            with _part_in_errors(part):
                listed = self.parts[part]([payload.chunk for payload in payloads])
            start = 0
            for payload in payloads:
                labels += [listed[start + i] for i in (payload.ids - payload.chunk.first_id).tolist()]
                start += payload.chunk.num_images
        return labels


@dataclass(frozen=True)
class MixedReader:
    """Reads a chunk with its part's reader; an object and not a closure, because it is pickled for workers.

    Attributes:
        readers: The reader of each part, in the order of the config.
        owners: The owner of all images of each part; empty if it is not known, or known by image.
    """

    readers: tuple[SourceReader, ...]
    owners: tuple[str, ...]

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        """Yield the wanted images of a chunk, under their ids in the mixture."""
        payload: PartChunk = chunk.payload
        # The part's reader knows only the part's own ids: translate what is wanted, then what comes back.
        mixed_ids = {part_id: chunk.first_id + j for j, part_id in enumerate(payload.ids.tolist())}
        wanted_of_part = {part_id for part_id, mixed_id in mixed_ids.items() if wanted(mixed_id)}
        with _part_in_errors(payload.part):
            for encoded in self.readers[payload.part](payload.chunk, wanted_of_part.__contains__):
                owner = encoded.owner or self.owners[payload.part]
                yield replace(encoded, image_id=mixed_ids[encoded.image_id], owner=owner)


@contextmanager
def _part_in_errors(part: int) -> Iterator[None]:
    """Name the part in errors of its source, which does not know that it is a part."""
    try:
        yield
    except InputError as error:
        raise InputError(f"images.parts.{part}: {error}") from None
