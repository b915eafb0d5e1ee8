"""The embedded source: scikit-learn's handwritten digits."""

from collections.abc import Callable, Iterator

import numpy as np

from ka_ray.config import DigitsImages
from ka_ray.images.sources import Chunk, Encoded, Source

CLASS_NAMES = tuple(f"digit_{i}" for i in range(10))
CHUNK_IMAGES = 512


def list_digits(config: DigitsImages) -> Source:
    """List the digits of one split; ``test`` is every fifth image, ``train`` the others.

    The few pixels travel with the chunks, so that no worker has to import scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.arange(len(digits.target))
    if config.split != "all":
        rows = rows[(rows % 5 == 4) == (config.split == "test")]
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    chunks = []
    for start in range(0, len(rows), CHUNK_IMAGES):
        part = rows[start : start + CHUNK_IMAGES]
        chunks.append(Chunk(start, len(part), (part, grey[part], digits.target[part])))
    return Source(chunks, read_digits, CLASS_NAMES)


def read_digits(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
    """Yield the wanted digits of a chunk; 16 grey levels are spread over 0 ... 255."""
    for offset, (row, grey, target) in enumerate(zip(*chunk.payload, strict=True)):
        if wanted(chunk.first_id + offset):
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
            yield Encoded(chunk.first_id + offset, f"digits[{row}]", pixels, CLASS_NAMES[target])
