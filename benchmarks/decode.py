"""Measure how fast one core decodes and resizes files, against Pillow alone and against torchvision.

    .venv/bin/python benchmarks/decode.py [--full] [--rounds N] [--output DIR]

Ours is what a reading task of a pass does to a folder of files: it reads, decodes by `images.decoding`,
resizes and crops. The twins read and decode the same files, and resize with Pillow or with torchvision, to
the same size. Printed is, too, by how much torchvision's pixels differ from Pillow's, of 255 grey values.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional
from twins import Row, measure_in_turns, publish, read_arguments

from ka_ray.config import Config
from ka_ray.images import read_chunk
from ka_ray.images.split import split_images

CASES = {"JPEG, 256 to 224 px": ("jpg", 256, 224, 256), "JPEG, 512 to 224 px": ("jpg", 512, 224, 96)}
MORE = {"PNG, 32 to 32 px": ("png", 32, 32, 2048), "JPEG, 1600 to 224 px": ("jpg", 1600, 224, 16)}
"""With --full, in addition. Format, size of the files, size of the images, number of files."""


def write_files(folder: Path, kind: str, size: int, count: int) -> None:
    """Write files of coarse noise, which take about as many bytes as photos."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((size, size)).save(folder / f"{number:04d}.{kind}", quality=90)


def decode_ours(folder: Path, size: int) -> float:
    """Return images/s of reading a folder as a task of a pass does."""
    images = {"source": "folder", "path": str(folder), "labelled": False, "size": size}
    teachers = [
        {"name": name, "network": "plain", "classes": [f"{name}1", f"{name}2"], "training": {"epochs": 1}}
        for name in ("a", "b")
    ]
    config = Config.model_validate({"name": "decode", "images": images, "teachers": teachers})
    image_set = split_images(config)[0]
    source, count = image_set.source, 0
    began = time.perf_counter()
    for chunk in source.chunks:
        columns = read_chunk(image_set.config, source.read, chunk, image_set.ids, None, _fail)
        count += sum(len(part["image_id"]) for part in columns)
    return count / (time.perf_counter() - began)


def _fail(image_id: int, name: str) -> None:
    raise ValueError(f"{name} cannot be read")


def decode_plainly(read: Callable[[bytes, int], object], folder: Path, size: int) -> float:
    """Return images/s of a plain loop over files.

    Args:
        read: Decodes and resizes the content of a file.
        folder: The files.
        size: Height and width that they get, in pixels.
    """
    files = sorted(folder.iterdir())
    began = time.perf_counter()
    for file in files:
        read(file.read_bytes(), size)
    return len(files) / (time.perf_counter() - began)


def read_with_pillow(content: bytes, size: int) -> np.ndarray:
    """Return the pixels ``[3, H, W]`` of a square image."""
    image = Image.open(BytesIO(content)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def read_with_torchvision(content: bytes, size: int) -> torch.Tensor:
    """Return the pixels ``[3, H, W]`` of a square image."""
    data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels = torchvision.io.decode_image(data, torchvision.io.ImageReadMode.RGB)
    return functional.resize(pixels, [size, size], antialias=True)


def compare_pixels(folder: Path, size: int) -> tuple[int, float]:
    """Return the largest and the mean difference of torchvision's pixels from Pillow's."""
    largest, total, files = 0, 0.0, sorted(folder.iterdir())[:8]
    for file in files:
        content = file.read_bytes()
        one = read_with_pillow(content, size).astype(int)
        difference = np.abs(one - read_with_torchvision(content, size).numpy().astype(int))
        largest, total = max(largest, int(difference.max())), total + float(difference.mean())
    return largest, total / len(files)


def main() -> None:
    """Measure all cases."""
    arguments, rows = read_arguments(__doc__), list[Row]()
    torch.set_num_threads(1)
    for label, (kind, file_size, size, count) in (CASES | (MORE if arguments.full else {})).items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "files"
            write_files(folder, kind, file_size, count)
            ours = functools.partial(decode_ours, folder, size)
            pillow, torch_reader = (
                functools.partial(decode_plainly, read, folder, size)
                for read in (read_with_pillow, read_with_torchvision)
            )
            pairs = {f"{label}, Pillow": (ours, pillow), f"{label}, torchvision": (ours, torch_reader)}
            rows += measure_in_turns(pairs, arguments.rounds)
            largest, mean = compare_pixels(folder, size)
            print(f"{label}: torchvision and Pillow differ by up to {largest}, on average by {mean:.2f}")
    publish("decode", "images/s on one core", rows, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
