"""From files to decoded images; no Ray here (`distributed/images.py` maps these functions over a cluster)."""

from collections.abc import Callable
from typing import Any

from ka_ray.config import ImagesConfig, MixedImages
from ka_ray.images.mixed import PLAIN_SOURCES, list_mixed
from ka_ray.images.sources import Chunk, Ids, Source, read_chunk, sample_ids

SOURCES: dict[type[Any], Callable[[Any], Source]] = {**PLAIN_SOURCES, MixedImages: list_mixed}


def open_source(config: ImagesConfig) -> Source:
    """List the images of a source; reads names and footers, no pixels.

    Raises:
        InputError: The source has no images, or a column it was told to read is missing.
    """
    return SOURCES[type(config)](config)


__all__ = ["SOURCES", "Chunk", "Ids", "Source", "open_source", "read_chunk", "sample_ids"]
