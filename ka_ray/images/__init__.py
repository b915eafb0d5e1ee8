"""From files to decoded images; no Ray here (`distributed/images.py` maps these functions over a cluster)."""

from collections.abc import Callable
from typing import Any

from ka_ray.config import DigitsImages, FolderImages, ImagesConfig, ParquetImages
from ka_ray.images.digits import list_digits
from ka_ray.images.folder import list_folder
from ka_ray.images.parquet import list_parquet
from ka_ray.images.reading import Chunk, Ids, Source, chosen_ids, read_chunk

SOURCES: dict[type[Any], Callable[[Any], Source]] = {
    DigitsImages: list_digits,
    FolderImages: list_folder,
    ParquetImages: list_parquet,
}


def open_source(config: ImagesConfig) -> Source:
    """List the images of a source; reads names and footers, no pixels.

    Raises:
        InputError: The source has no images, or a column it was told to read is missing.
    """
    return SOURCES[type(config)](config)


__all__ = ["SOURCES", "Chunk", "Ids", "Source", "chosen_ids", "open_source", "read_chunk"]
