"""Decode image files into square RGB arrays."""

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError


def decode(
    content: bytes | npt.NDArray[np.uint8], size: int, resize: Literal["squash", "crop"]
) -> npt.NDArray[np.uint8]:
    """Decode one image and resize it to ``size`` x ``size`` pixels.

    Args:
        content: The bytes of an image file, or RGB pixels ``[H, W, 3]``.
        size: Height and width of the result in pixels.
        resize: ``squash`` scales both sides to ``size``; ``crop`` scales the shorter side to ``size`` and
            cuts out the centre.

    Returns:
        RGB pixels, ``[3, size, size]``.

    Raises:
        Exception: The bytes are not an image, or a damaged one. Pillow's decoders raise many types.
    """
    image = _open(content) if isinstance(content, bytes) else Image.fromarray(content)
    image = image.convert("RGB")
    # An image of the right size is not resampled: its pixels stay exactly as they are.
    if image.size != (size, size):
        image = (
            _crop(image, size) if resize == "crop" else image.resize((size, size), Image.Resampling.BILINEAR)
        )
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        # Pillow's own message names the BytesIO object, which tells the user nothing.
        raise ValueError("not an image file") from None


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    scale = size / min(width, height)
    # Rounding must not make the longer side smaller than the crop.
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
