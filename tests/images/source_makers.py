"""The same twelve images, of several sizes, as every kind of source keeps them."""

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ka_ray.config.load import load_images
from ka_ray.images import open_source, read_chunk

SIZE = 6
CLASSES = ("cat", "dog", "fish")
TARGETS = (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2)
LABELS = [CLASSES[i] for i in TARGETS]

datasets.disable_progress_bars()


@dataclass(frozen=True)
class Pictures:
    """Image files, one folder per class, and their encoded contents in the order of the names."""

    folder: Path
    names: list[str]
    contents: list[bytes]

    def pixels(self) -> np.ndarray:
        """Return what a plain loop with Pillow makes of the files, ``[12, 3, SIZE, SIZE]``."""
        images = [Image.open(io.BytesIO(content)).convert("RGB") for content in self.contents]
        small = [np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images]
        return np.stack(small).transpose(0, 3, 1, 2)


def write_pictures(folder: Path) -> Pictures:
    rng = np.random.default_rng(0)
    names, contents = [], []
    for i, label in enumerate(LABELS):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8 + i, 20 - i, 3), dtype=np.uint8)).save(file, "PNG")
        names.append(f"{label}/{i:02d}.png")
        contents.append(file.getvalue())
        path = folder / names[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[-1])
    return Pictures(folder, names, contents)


def read(config: Any, ids: Any = None, unreadable: list[str] | None = None) -> dict[str, np.ndarray]:
    """Read a whole source, or some ids of it, into one set of columns."""
    source = open_source(config)
    ids = np.arange(source.num_images) if ids is None else np.asarray(ids)

    def on_unreadable(image_id: int, name: str) -> None:
        assert unreadable is not None, name
        unreadable.append(name)

    batches = [
        batch
        for chunk in source.chunks
        for batch in read_chunk(config, source.read, chunk, ids, None, on_unreadable)
    ]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def load(tree: dict[str, Any], **keys: Any) -> Any:
    return load_images({"size": SIZE, "resize": "squash", **tree, **keys})


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def make_folder(pictures: Pictures) -> dict[str, Any]:
    return {"source": "folder", "path": str(pictures.folder)}


def make_parquet(pictures: Pictures) -> dict[str, Any]:
    path = pictures.folder.parent / "rows.parquet"
    pq.write_table(pa.table({"image": pictures.contents, "label": LABELS}), path, row_group_size=5)
    return {"source": "parquet", "path": str(path), "label_column": "label"}


def make_list(pictures: Pictures) -> dict[str, Any]:
    path = pictures.folder / "list.csv"
    rows = [f"{name},{label}" for name, label in zip(pictures.names, LABELS, strict=True)]
    path.write_text("\n".join(["path,label", *rows]))
    return {"source": "list", "path": str(path), "label_column": "label"}


def make_saved_dataset(pictures: Pictures) -> dict[str, Any]:
    path = pictures.folder.parent / "saved"
    rows = {"image": [{"bytes": c, "path": None} for c in pictures.contents], "label": list(TARGETS)}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(path, num_shards=2)
    return {"source": "datasets", "path": str(path), "label_column": "label"}


def make_shards(pictures: Pictures) -> dict[str, Any]:
    folder = pictures.folder.parent / "shards"
    folder.mkdir()
    members = [
        member
        for i, (content, target) in enumerate(zip(pictures.contents, TARGETS, strict=True))
        for member in ((f"{i:04d}.png", content), (f"{i:04d}.cls", str(target).encode()))
    ]
    write_tar(folder / "b.tar", members[14:])
    write_tar(folder / "a.tar", members[:14])
    return {"source": "webdataset", "path": str(folder), "label_key": "cls", "classes": list(CLASSES)}


def make_torchvision(pictures: Pictures) -> dict[str, Any]:
    return {"source": "torchvision", "dataset": "ImageFolder", "root": str(pictures.folder)}


MAKERS: dict[str, Callable[[Pictures], dict[str, Any]]] = {
    "folder": make_folder,
    "parquet": make_parquet,
    "list": make_list,
    "datasets": make_saved_dataset,
    "webdataset": make_shards,
    "torchvision": make_torchvision,
}
"""Kind of source -> writes the images in its form, and returns the config."""


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()
