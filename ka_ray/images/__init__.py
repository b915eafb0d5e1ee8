"""From files to decoded images, without Ray: `distributed/images.py` runs these functions on a cluster."""

from collections.abc import Callable
from typing import Any

from ka_ray.config import ImagesConfig, MixedImages
from ka_ray.images.mixed import PLAIN_SOURCES, list_mixed
from ka_ray.images.sources import Chunk, Ids, Source, read_chunk, sample_ids

SOURCES: dict[type[Any], Callable[[Any], Source]] = {**PLAIN_SOURCES, MixedImages: list_mixed}
"""Config section -> the function that lists the images it describes. A new source is added here."""


def open_source(config: ImagesConfig) -> Source:
    """List the images of a source; reads file names and Parquet footers, but no pixels.

    Args:
        config: The config's ``images`` section.

    Raises:
        InputError: The source has no images, or lacks a column that the config names.
    """
    return SOURCES[type(config)](config)


__all__ = ["SOURCES", "Chunk", "Ids", "Source", "open_source", "read_chunk", "sample_ids"]
