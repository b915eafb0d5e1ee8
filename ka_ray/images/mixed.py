"""Several sources read as one: the ids of a part count on where those of the part before it end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ka_ray.config import DigitsImages, FolderImages, MixedImages, ParquetImages
from ka_ray.errors import InputError
from ka_ray.images.digits import list_digits
from ka_ray.images.folder import list_folder
from ka_ray.images.parquet import list_parquet
from ka_ray.images.sources import Chunk, Encoded, Ids, Source, SourceReader, sample_ids

PLAIN_SOURCES: dict[type[Any], Callable[[Any], Source]] = {
    DigitsImages: list_digits,
    FolderImages: list_folder,
    ParquetImages: list_parquet,
}
"""The sources that can be parts of a mixture, and how each is listed."""


@dataclass(frozen=True)
class PartChunk:
    """The payload of a mixture's chunk: a chunk of one part, and those of its images that count."""

    part: int
    chunk: Chunk
    ids: Ids
    """Ids within the part, sorted: the j-th is image ``first_id + j`` of the mixture."""


def list_mixed(config: MixedImages) -> Source:
    """List the images of every part; those beyond a part's limit are left out, and get no id.

    Raises:
        InputError: A part has no images, or cannot be read as it is described; the part is named.
    """
    chunks: list[Chunk] = []
    parts: list[Source] = []
    first_id = 0
    for number, part in enumerate(config.parts):
        with _naming(number):
            parts.append(PLAIN_SOURCES[type(part)](part))
        chosen = sample_ids(parts[-1].num_images, part.limit, seed=0)
        for chunk in parts[-1].chunks:
            start, end = np.searchsorted(chosen, [chunk.first_id, chunk.first_id + chunk.num_images])
            if start < end:
                payload = PartChunk(number, chunk, chosen[start:end])
                chunks.append(Chunk(first_id, len(payload.ids), payload))
                first_id += len(payload.ids)
    return Source(chunks, MixedReader(tuple(part.read for part in parts)), _all_classes(parts))


def _all_classes(parts: list[Source]) -> tuple[str, ...] | None:
    """Give every part's classes, each once, in the order of the parts; None where a part does not know."""
    names: dict[str, None] = {}
    for part in parts:
        if part.class_names is None:
            return None
        names |= dict.fromkeys(part.class_names)
    return tuple(names)


@dataclass(frozen=True)
class MixedReader:
    """Reads a chunk with the reader of its part; a callable object, because it must travel to workers."""

    readers: tuple[SourceReader, ...]

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
        """Yield the wanted images of a chunk, under their ids in the mixture."""
        payload: PartChunk = chunk.payload
        mixed_ids = {part_id: chunk.first_id + j for j, part_id in enumerate(payload.ids.tolist())}
        wanted_of_part = {part_id for part_id, mixed_id in mixed_ids.items() if wanted(mixed_id)}
        with _naming(payload.part):
            for encoded in self.readers[payload.part](payload.chunk, wanted_of_part.__contains__):
                yield replace(encoded, image_id=mixed_ids[encoded.image_id])


@contextmanager
def _naming(part: int) -> Iterator[None]:
    """Say which part a complaint about its keys means."""
    try:
        yield
    except InputError as error:
        raise InputError(f"images.parts.{part}: {error}") from None
