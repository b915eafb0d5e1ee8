"""Measure what it costs to list a million images, per kind of source.

    .venv/bin/python benchmarks/list_images.py

Makes 200,000 image files (hard links to a few), a CSV list of them, and tar shards with the same number of
samples, in a temporary folder. Lists each of them in a process of its own. Prints, scaled to a million
images: the seconds, the memory that the list keeps, and the peak of memory while it is made.
"""

import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from ka_ray.config.load import load_images
from ka_ray.images import open_source

NUM_IMAGES, NUM_CLASSES, SHARD_IMAGES = 200_000, 100, 10_000
MAX_LINKS = 30_000  # a file of ext4 has at most 65,000


def names(count: int) -> list[str]:
    """Return names like those of ImageNet's training images."""
    step = NUM_IMAGES // NUM_CLASSES
    return [f"train/n{i // step:08d}/n{i // step:08d}_{i % step:05d}.JPEG" for i in range(count)]


def make_files(folder: Path, content: bytes, count: int) -> None:
    for i, name in enumerate(names(count)):
        path, first = folder / name, folder / f"first-{i // MAX_LINKS}"
        if i % MAX_LINKS == 0:
            first.write_bytes(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(first, path)


def make_list(path: Path, folder: Path, count: int) -> None:
    rows = [f"{folder}/{name},{name.split('/')[1]}\n" for name in names(count)]
    path.write_text("".join(["path,label\n", *rows]))


def make_shards(folder: Path, content: bytes, count: int) -> None:
    folder.mkdir()
    for shard in range(-(-count // SHARD_IMAGES)):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for i in range(min(SHARD_IMAGES, count)):
                for suffix, data in (("jpg", content), ("cls", b"7")):
                    member = tarfile.TarInfo(f"{shard:04d}{i:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def resident_mib(key: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0]) / 1024


def measure(tree: dict[str, object], folder: Path) -> tuple[float, float, float]:
    """Return seconds, kept MiB and peak MiB of listing one source."""

    def fill(text: object, part: str) -> object:
        return str(folder / part / str(text)) if text in ("files/train", "list.csv", "shards") else text

    small, large = (
        load_images({"size": 32} | {key: fill(value, part) for key, value in tree.items()})
        for part in ("small", "large")
    )
    open_source(small)  # what libraries need once is no cost of an image
    start_mib, start = resident_mib("VmRSS"), time.perf_counter()
    source = open_source(large)
    seconds = time.perf_counter() - start
    assert source.num_images == NUM_IMAGES
    return seconds, resident_mib("VmRSS") - start_mib, resident_mib("VmHWM") - start_mib


TREES: list[dict[str, object]] = [
    {"source": "folder", "path": "files/train"},
    {"source": "list", "path": "list.csv", "label_column": "label"},
    {"source": "webdataset", "path": "shards", "label_key": "cls"},
]


def main() -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    with tempfile.TemporaryDirectory() as where:
        for part, count in (("small", 64), ("large", NUM_IMAGES)):
            folder = Path(where, part)
            (folder / "files").mkdir(parents=True)
            make_files(folder / "files", file.getvalue(), count)
            make_list(folder / "list.csv", folder / "files", count)
            make_shards(folder / "shards", file.getvalue(), count)
        context, scale = multiprocessing.get_context("spawn"), 1_000_000 / NUM_IMAGES
        for tree in TREES:
            with context.Pool(1) as pool:
                seconds, kept, peak = (scale * value for value in pool.apply(measure, (tree, Path(where))))
            print(f"{tree['source']}: {seconds:.0f} s, {kept:.0f} MiB kept, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
