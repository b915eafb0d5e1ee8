"""Every kind of image file becomes the right 8-bit pixels, or is refused under its name with the reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydantic import ValidationError

from ka_ray.config import Decoding
from ka_ray.images.decode import decode_image

RULES = Decoding()
EXIF_ORIENTATION = 0x0112


def encode(image: Image.Image, form: str, **arguments: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **arguments)
    return file.getvalue()


def decode(content: bytes, **rules: object) -> np.ndarray:
    """Return the decoded RGB pixels ``[H, W, 3]``."""
    return np.asarray(decode_image(content, Decoding.model_validate(rules)).convert("RGB"))


def noise(height: int, width: int, *channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_only_if_the_rules_say_so(orientation):
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    content = encode(Image.fromarray(pixels), "PNG", exif=exif)
    # What each value of the tag means: EXIF 2.32, 4.6.4 A. As numpy says it, independent of Pillow.
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels),
    }
    np.testing.assert_array_equal(decode(content), pixels)
    np.testing.assert_array_equal(decode(content, exif_orientation=True), turned[orientation])


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled(form):
    values = np.array([[0, 128, 257, 32896], [40000, 65278, 65407, 65535]], np.uint16)
    expected = np.rint(values / 65535 * 255).astype(np.uint8)
    assert expected.tolist() == [[0, 0, 1, 128], [156, 254, 255, 255]]
    np.testing.assert_array_equal(decode(encode(Image.fromarray(values), form))[:, :, 0], expected)


def test_12_bit_grey_needs_to_be_told_what_is_white():
    values = np.array([[0, 1000, 2048, 4095]], np.uint16)
    content = encode(Image.fromarray(values), "PNG")
    with pytest.raises(
        ValueError, match=r"values lie in 0 \.\.\. 4095; set images.decoding.white .* 4095 for 12"
    ):
        decode(content)
    assert decode(content, white=4095)[0, :, 0].tolist() == [0, 62, 128, 255]
    assert decode(content, white=65535)[0, :, 0].tolist() == [0, 4, 8, 16]
    with pytest.raises(ValueError, match="values below 0 or above it are refused"):
        decode(content, white=1023)


def test_float_images_are_scaled():
    values = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    assert decode(encode(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 64, 128, 255]
    bright = encode(Image.fromarray(values * 200), "TIFF")
    with pytest.raises(ValueError, match=r"values lie in 0 \.\.\. 200; set images.decoding.white"):
        decode(bright)
    assert decode(bright, white=200)[0, :, 0].tolist() == [0, 64, 128, 255]
    for broken in (values - 1, values * np.nan):
        with pytest.raises(ValueError, match=r"set images.decoding.white"):
            decode(encode(Image.fromarray(broken), "TIFF"))


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 20, 30)])
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_show_the_background(form, background):
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[0, 0] = (0, 0, 0, 255)  # a black glyph
    pixels[0, 1] = (200, 100, 50, 128)
    arguments = {"lossless": True, "exact": True} if form == "WEBP" else {}
    found = decode(encode(Image.fromarray(pixels), form, **arguments), background=background)
    assert found[0, 0].tolist() == [0, 0, 0]
    blended = np.array([200, 100, 50]) * (128 / 255) + np.array(background) * (127 / 255)
    np.testing.assert_allclose(found[0, 1], blended, atol=1)
    assert (found[1] == background).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA"])
def test_a_transparent_colour_or_grey_alpha_shows_the_background(mode):
    if mode == "LA":
        grey = np.stack([np.zeros((2, 2)), [[255, 0], [0, 0]]], axis=2).astype(np.uint8)
        content = encode(Image.fromarray(grey, "LA"), "PNG")
    else:
        image = Image.fromarray(np.array([[0, 255], [255, 255]], np.uint8)).convert(mode)
        key = {"P": image.convert("P").getpixel((1, 0)), "L": 255, "RGB": (255, 255, 255)}[mode]
        content = encode(image, "PNG", transparency=key)
    found = decode(content, background=(9, 8, 7))
    assert found[0, 0].tolist() == [0, 0, 0]
    assert found[1].tolist() == [[9, 8, 7], [9, 8, 7]]


@pytest.mark.parametrize(
    "form", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF", "DIB"]
)
def test_every_documented_format_is_read_by_its_content(form):
    colour = (200, 30, 90)
    found = decode(encode(Image.new("RGB", (16, 16), colour), form)).astype(int)
    assert abs(found - colour).max() <= 4  # JPEG, WebP and AVIF are lossy


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "1", "LAB", "HSV"])
def test_other_colour_spaces_become_rgb(mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    if mode == "LAB":
        lab = Image.new("LAB", (8, 8), (255, 128, 128))  # L = 100, a = b = 0: white
        assert decode(encode(lab, "TIFF")).min() >= 250
        return
    form = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    content = encode(image.convert(mode) if mode != "HSV" else image, form)
    assert decode(content).min() >= 254


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_an_animation_is_read(form):
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (250, 10)]
    arguments = {"lossless": True} if form == "WEBP" else {}
    content = encode(frames[0], form, save_all=True, append_images=frames[1:], **arguments)
    assert (decode(content) == 250).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_shapes_are_read(height, width):
    pixels = noise(height, width, 3)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels), "PNG")), pixels)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_or_its_beginning_is_read(form):
    pixels = noise(64, 64, 3)
    content = encode(Image.fromarray(pixels), form)
    cut = content[: len(content) * 2 // 3]
    with pytest.raises(OSError, match=r"truncated|broken"):
        decode(cut)
    found = decode(cut, truncated="accept")
    np.testing.assert_array_equal(found[:16], decode(content)[:16])
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file whose header promises an image that its few bytes do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_before_it_is_decoded():
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(Exception, match=r"decompression bomb|more than images.decoding.max_pixels"):
        decode(png_of_size(50_000, 50_000))
    with pytest.raises(ValueError, match=r"100 x 100 pixels are more than images.decoding.max_pixels = 9999"):
        decode(encode(Image.new("RGB", (100, 100)), "PNG"), max_pixels=9999)
    with pytest.raises(ValueError, match="30000 x 30000 pixels are more than"):
        decode(png_of_size(30_000, 30_000), max_pixels=800_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"no image", "not an image file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image file"),
        (
            b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
            "a HEIC image, which this installation of Pillow",
        ),
    ],
    ids=["empty", "text", "PostScript", "HEIC"],
)
def test_other_files_are_refused_with_the_reason(content, message):
    with pytest.raises(ValueError, match=message):
        decode(content)


@pytest.mark.parametrize(
    "rules", [{"background": [0, 0, 256]}, {"white": 0}, {"truncated": "maybe"}, {"max_pixels": 0}]
)
def test_rules_that_mean_nothing_are_refused(rules):
    with pytest.raises(ValidationError):
        Decoding.model_validate(rules)
