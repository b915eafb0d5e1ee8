"""Decode image files into RGB images. No torch: reading tasks start fast without it."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ka_ray.config.decoding import Decoding

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""Pillow's names of the formats that are read. Of its other formats, some run programs (EPS: Ghostscript)."""

BITS_PER_SAMPLE = 258
"""TIFF tag with the number of bits of a channel."""

DARK = 4096
"""A 16-bit image whose values are all below this one may hold 12-bit values; the file does not tell."""

PILLOW_MAX_PIXELS = 178_956_970
"""Pillow refuses larger images by itself."""

_pillow_settings = threading.Lock()


def decode_image(content: bytes | npt.NDArray[np.uint8] | Image.Image, rules: Decoding) -> Image.Image:
    """Decode one image file; of an animation, the first frame.

    Args:
        content: The bytes of an image file, RGB pixels ``[H, W, 3]``, or an image that is decoded already.
        rules: What to do with orientation, transparency, more than 8 bits, and damaged or huge files.

    Returns:
        The image in Pillow's mode ``RGB``, or ``L`` if the file is grey.

    Raises:
        Exception: The bytes are not an image, or one that the rules refuse. Pillow's decoders raise many
            types.
    """
    if isinstance(content, Image.Image):
        return _to_8_bits(content, rules)
    if not isinstance(content, bytes):
        return Image.fromarray(content)
    with _pillow(rules), _open(content) as image:
        width, height = image.size
        if width * height > rules.max_pixels:
            raise ValueError(
                f"{width} x {height} pixels are more than images.decoding.max_pixels = {rules.max_pixels}"
            )
        image.load()
        if rules.exif_orientation:
            image = ImageOps.exif_transpose(image)
        return _to_8_bits(image, rules)


@contextmanager
def _pillow(rules: Decoding) -> Iterator[None]:
    """Set what Pillow can only be told for the whole process, and restore it."""
    if rules.truncated == "refuse" and rules.max_pixels <= PILLOW_MAX_PIXELS:
        yield  # as Pillow is set already
        return
    with _pillow_settings:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES = rules.truncated == "accept"
        # `decode_image` checks the size itself, by its own limit.
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


@contextmanager
def known_formats_only() -> Iterator[None]:
    """Let Pillow open only :data:`FORMATS` while the block runs, for libraries that open files themselves."""
    with _pillow_settings:
        Image.init()  # else the first unknown file would load all formats
        before, Image.ID = Image.ID, [name for name in Image.ID if name in FORMATS]
        try:
            yield
        finally:
            Image.ID = before


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=_known_formats())
    except UnidentifiedImageError:
        # Pillow's own message names the BytesIO object, which tells the user nothing.
        raise ValueError(_describe_foreign(content)) from None


@cache
def _known_formats() -> tuple[str, ...]:
    """Return those of :data:`FORMATS` that this installation of Pillow can read."""
    Image.init()  # loads the plugins of all formats
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _describe_foreign(content: bytes) -> str:
    """Return what a file is that Pillow cannot open, for the error message."""
    brand = content[8:12] if content[4:8] == b"ftyp" else b""
    if brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"):
        return "a HEIC image, which this installation of Pillow cannot read; convert it to JPEG or PNG"
    if brand in (b"avif", b"avis"):
        return "an AVIF image, which this installation of Pillow cannot read; convert it to JPEG or PNG"
    return "empty" if not content else "not an image file"


def _to_8_bits(image: Image.Image, rules: Decoding) -> Image.Image:
    """Convert an image of any mode to ``RGB``, or to ``L`` if it is grey."""
    if image.mode.startswith(("I", "F")):
        return _scale(image, rules)
    # A palette, RGB or grey image can name one colour that is transparent; the other modes have a channel.
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (*rules.background, 255))
        return Image.alpha_composite(backdrop, image).convert("RGB")
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _scale(image: Image.Image, rules: Decoding) -> Image.Image:
    """Scale a grey image of more than 8 bits so that ``white`` becomes 255.

    Raises:
        ValueError: It is not clear which value is white, or values lie outside of 0 ... white.
    """
    values = np.asarray(image, dtype=np.float64)
    lowest, highest = float(values.min()), float(values.max())  # NaN where a value is NaN
    white = rules.white if rules.white is not None else _white(image, highest)
    if white is None or not (lowest >= 0 and highest <= white):
        raise ValueError(
            f"its values lie in {lowest:g} ... {highest:g}; set images.decoding.white to the value that is "
            "white, such as 4095 for 12 bits or 65535 for 16 bits (values below 0 or above it are refused)"
        )
    return Image.fromarray(np.rint(values * 255 / white).astype(np.uint8))


def _white(image: Image.Image, highest: float) -> float | None:
    """Return the largest value that an image's format allows; None if the file does not tell."""
    if image.mode == "F":
        return 1.0 if highest <= 1 else None
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    bits = bits[0] if isinstance(bits, tuple) else bits
    if 8 < bits < 16:
        return float(2**bits - 1)
    return 65535.0 if DARK <= highest <= 65535 or highest == 0 else None
