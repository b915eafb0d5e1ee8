"""From encoded bytes to a square RGB array."""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError


def decode(
    content: bytes | npt.NDArray[np.uint8], size: int, resize: Literal["squash", "crop"]
) -> npt.NDArray[np.uint8]:
    """Decode one image and make it ``size`` x ``size``.

    Args:
        content: Encoded bytes, or pixels ``[H, W, 3]``.
        size: Sides of the result in pixels.
        resize: ``squash`` scales both sides to size; ``crop`` scales the shorter side and cuts the centre.

    Returns:
        RGB pixels ``[3, size, size]``.

    Raises:
        Exception: Of many kinds, where the bytes are no image or a damaged one.
    """
    image = _open(content) if isinstance(content, bytes) else Image.fromarray(content)
    image = image.convert("RGB")
    if image.size != (size, size):
        image = (
            _crop(image, size) if resize == "crop" else image.resize((size, size), Image.Resampling.BILINEAR)
        )
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ValueError("not an image file") from None


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
