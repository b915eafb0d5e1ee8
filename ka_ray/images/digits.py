"""The embedded source: scikit-learn's handwritten digits."""

from collections.abc import Callable, Iterator

import numpy as np

from ka_ray.config import DigitsImages
from ka_ray.images.reading import Chunk, Encoded, Source

CLASS_NAMES = tuple(f"digit_{i}" for i in range(10))
CHUNK_IMAGES = 512


def list_digits(config: DigitsImages) -> Source:
    """List the digits of one split; ``test`` is every fifth image, ``train`` the others."""
    from sklearn.datasets import load_digits

    rows = np.arange(len(load_digits().target))
    if config.split != "all":
        rows = rows[(rows % 5 == 4) == (config.split == "test")]
    starts = range(0, len(rows), CHUNK_IMAGES)
    chunks = [Chunk(i, len(rows[i : i + CHUNK_IMAGES]), rows[i : i + CHUNK_IMAGES].tolist()) for i in starts]
    return Source(chunks, read_digits, CLASS_NAMES)


def read_digits(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[Encoded]:
    """Yield the wanted digits of a chunk; 16 grey levels are spread over 0 ... 255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for offset, row in enumerate(chunk.payload):
        if wanted(chunk.first_id + offset):
            grey = np.round(digits.images[row] * (255 / 16)).astype(np.uint8)
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
            label = CLASS_NAMES[int(digits.target[row])]
            yield Encoded(chunk.first_id + offset, f"digits[{row}]", pixels, label)
