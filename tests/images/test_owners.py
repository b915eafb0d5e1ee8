"""Test owners of images: the teacher whose classes an image shows, named for a source, a part, or a row."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ka_ray.config import ImagesConfig
from ka_ray.errors import InputError
from ka_ray.images import open_source, read_chunk


def load(tree):
    return TypeAdapter(ImagesConfig).validate_python({"size": 8} | tree)


def read_owners(tree):
    config = load(tree)
    source = open_source(config)
    ids = np.arange(source.num_images)

    def fail(image_id, name):
        raise AssertionError(name)

    parts = [
        part for chunk in source.chunks for part in read_chunk(config, source.read, chunk, ids, None, fail)
    ]
    return [
        None if "owner" not in part else owner for part in parts for owner in part.get("owner", part["label"])
    ]


def encode(value):
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(content, "png")
    return content.getvalue()


@pytest.fixture
def folders(tmp_path):
    for name, count in (("dogs", 2), ("birds", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").write_bytes(encode(i))
    return tmp_path


def part(folder, **keys):
    return {"source": "folder", "path": str(folder), "labelled": False} | keys


def test_a_source_belongs_to_a_teacher(folders):
    assert read_owners(part(folders / "dogs", owner="a")) == ["a", "a"]
    assert read_owners(part(folders / "dogs")) == [None, None]


def test_parts_of_a_mixture_have_owners_of_their_own(folders):
    parts = [part(folders / "dogs", owner="a"), part(folders / "birds")]
    assert read_owners({"source": "mixed", "parts": parts}) == ["a", "a", "", "", ""]
    assert load({"source": "mixed", "parts": parts}).named_owners == {"a"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_list_has_a_column_of_owners(folders, suffix):
    rows = [("dogs/0.png", "a"), ("birds/0.png", ""), ("birds/1.png", "b")]
    path = folders / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("path,world\n" + "".join(f"{file},{owner}\n" for file, owner in rows))
    else:
        pq.write_table(pa.table({"world": [o or None for _, o in rows], "path": [f for f, _ in rows]}), path)
    assert read_owners({"source": "list", "path": str(path), "owner_column": "world"}) == ["a", "", "b"]


def test_parquet_has_a_column_of_owners_beside_labels_or_instead(tmp_path):
    path = tmp_path / "images.parquet"
    table = {"world": ["a", None, "b"], "image": [encode(i) for i in range(3)], "label": ["x", "y", "z"]}
    pq.write_table(pa.table(table), path)
    tree = {"source": "parquet", "path": str(path), "owner_column": "world"}
    assert read_owners(tree) == ["a", "", "b"]
    assert read_owners(tree | {"label_column": "label"}) == ["a", "", "b"]


def test_owners_that_are_no_text_or_that_are_given_twice_are_refused(tmp_path):
    path = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [encode(0)], "world": [3]}), path)
    tree = {"source": "parquet", "path": str(path), "owner_column": "world"}
    with pytest.raises(InputError, match=r"images\.owner_column: column 'world' of .* holds int64, not text"):
        read_owners(tree)
    with pytest.raises(InputError, match=r"images\.owner_column: .* has no column 'other'"):
        read_owners(tree | {"owner_column": "other"})
    with pytest.raises(ValidationError, match="either owner, for all images, or owner_column"):
        load(tree | {"owner": "a"})
