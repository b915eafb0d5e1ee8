"""Digests of decoded images, by which evaluation images that were learned from are found under any name.

They are made of the student's view of an image, so the same picture in a folder and in a Parquet file, as PNG
and as BMP, has the same digest. This module does not import torch, so that tasks that write features start
in a fraction of the time.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.int64]

DIGEST = "digest"
"""Name of the column with the digest of each stored image."""


def digest_pixels(images: npt.NDArray[np.uint8]) -> Digests:
    """Compute a digest of each image; different images have the same one with a probability of 2^-64.

    Args:
        images: Decoded images, ``[n, C, H, W]``.

    Returns:
        The digests, ``[n]``.
    """
    digests = (blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.frombuffer(b"".join(digests), "<i8").astype(np.int64)
