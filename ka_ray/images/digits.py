"""The image source that is built in: scikit-learn's handwritten digits."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ka_ray.config import DigitsImages
from ka_ray.images.identity import Identities, identify
from ka_ray.images.sources import Chunk, EncodedImage, Source

CLASS_NAMES = tuple(f"digit_{i}" for i in range(10))

CHUNK_IMAGES = 512
"""Number of images per chunk."""


def list_digits(config: DigitsImages) -> Source:
    """List the digits of one split: ``test`` is every fifth image, ``train`` the others, ``all`` both.

    Args:
        config: The config's ``images`` section.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.arange(len(digits.target))
    if config.split != "all":
        rows = rows[(rows % 5 == 4) == (config.split == "test")]
    # scikit-learn has 16 grey levels (0 ... 16); networks expect pixels in 0 ... 255.
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    chunks = []
    for start in range(0, len(rows), CHUNK_IMAGES):
        part = rows[start : start + CHUNK_IMAGES]
        # The pixels are few, so they travel in the chunk: no worker has to import scikit-learn.
        chunks.append(Chunk(start, len(part), (part, grey[part], digits.target[part])))
    return Source(chunks, read_digits, CLASS_NAMES, "", labels_of_digits, identify_digits)


def labels_of_digits(chunks: Sequence[Chunk]) -> list[str]:
    """Return the labels of digits.

    Args:
        chunks: Chunks of :func:`list_digits`.
    """
    return [CLASS_NAMES[target] for chunk in chunks for target in chunk.payload[2]]


def identify_digits(chunk: Chunk) -> Identities:
    """Identify digits by their numbers in scikit-learn's list, whichever split they are from."""
    return identify((f"digits[{row}]", "", -1) for row in chunk.payload[0])


def read_digits(chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
    """Yield the wanted digits of a chunk, as RGB pixels.

    Args:
        chunk: A chunk of :func:`list_digits`.
        wanted: Whether to read the image with this id.
    """
    for offset, (row, grey, target) in enumerate(zip(*chunk.payload, strict=True)):
        if wanted(chunk.first_id + offset):
            pixels = np.repeat(grey[:, :, None], 3, axis=2)
            yield EncodedImage(chunk.first_id + offset, f"digits[{row}]", pixels, CLASS_NAMES[target])
