"""Hugging Face datasets that were saved by save_to_disk."""

import io
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from source_makers import CLASSES, LABELS, load, make_saved_dataset, read

from ka_ray.errors import InputError
from ka_ray.images import open_source

IMAGE = datasets.Image()


def save(path, columns, features=None, format_type=None):
    dataset = datasets.Dataset.from_dict(columns, features and datasets.Features(features))
    dataset.with_format(format_type).save_to_disk(path)
    return {"source": "datasets", "path": str(path)}


def cells(pictures, count):
    return [{"bytes": content, "path": None} for content in pictures.contents[:count]]


def test_a_split_of_a_dataset_dict_is_read(pictures, tmp_path):
    saved = datasets.load_from_disk(make_saved_dataset(pictures)["path"])
    splits = {"train": saved.select(range(8)), "test": saved.select(range(8, 12))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "both")
    tree = {"source": "datasets", "path": str(tmp_path / "both"), "label_column": "label"}
    columns = read(load(tree, split="test"))
    assert columns["label"].tolist() == LABELS[8:]
    np.testing.assert_array_equal(columns["image"], pictures.pixels()[8:])
    for split in (None, "dev"):
        with pytest.raises(InputError, match=r"images\.split: .* splits \['train', 'test'\]"):
            open_source(load(tree, split=split))


def test_a_shuffled_dataset_keeps_its_order(pictures, tmp_path):
    saved = datasets.load_from_disk(make_saved_dataset(pictures)["path"])
    order = [5, 0, 11, 3]
    saved.select(order).save_to_disk(tmp_path / "few")
    columns = read(load({"source": "datasets", "path": str(tmp_path / "few"), "label_column": "label"}))
    np.testing.assert_array_equal(columns["image"], pictures.pixels()[order])
    assert columns["label"].tolist() == [LABELS[i] for i in order]


def test_labels_are_those_of_the_feature_or_the_config(pictures, tmp_path):
    features = {"image": IMAGE, "y": datasets.ClassLabel(names=list(CLASSES))}
    tree = save(tmp_path / "a", {"image": cells(pictures, 3), "y": [2, -1, 0]}, features) | {
        "label_column": "y"
    }
    assert read(load(tree))["label"].tolist() == ["fish", "", "cat"]
    assert open_source(load(tree)).class_names == CLASSES
    named = load(tree, classes=["x", "y", "z"])
    assert read(named)["label"].tolist() == ["z", "", "x"]
    assert set(read(load(tree, label_column=None))["label"]) == {""}


@pytest.mark.parametrize(
    ("kind", "labels", "expected"),
    [("string", ["b", None], ["b", ""]), ("int64", [1, None], ["dog", ""])],
)
def test_labels_of_other_columns(pictures, tmp_path, kind, labels, expected):
    columns = {"image": cells(pictures, 2), "y": labels}
    tree = save(tmp_path / "a", columns, {"image": IMAGE, "y": datasets.Value(kind)}) | {"label_column": "y"}
    classes = {"classes": list(CLASSES)} if kind == "int64" else {}
    assert read(load(tree, **classes))["label"].tolist() == expected
    if kind == "int64":
        with pytest.raises(InputError, match=r"images\.classes: column 'y' of .* not text"):
            open_source(load(tree))
        with pytest.raises(InputError, match="label 1 found, but only 1 classes"):
            read(load(tree, classes=["a"]))


def test_a_dataset_saved_with_a_format_of_tensors_is_read_as_it_is_stored(pictures, tmp_path):
    tree = save(tmp_path / "a", {"image": cells(pictures, 2)}, {"image": IMAGE}, "torch")
    np.testing.assert_array_equal(read(load(tree))["image"], pictures.pixels()[:2])


def test_a_binary_column_has_to_be_named(pictures, tmp_path):
    tree = save(tmp_path / "a", {"jpg": pictures.contents[:2], "note": ["a", "b"]}, None)
    with pytest.raises(InputError, match=r"has 0 columns of images; .* \['jpg', 'note'\]"):
        open_source(load(tree))
    np.testing.assert_array_equal(read(load(tree, image_column="jpg"))["image"], pictures.pixels()[:2])
    for wrong in ("note", "png"):
        with pytest.raises(InputError, match=f"no column '{wrong}' of images"):
            open_source(load(tree, image_column=wrong))


def test_unreadable_rows_are_reported_by_number(pictures, tmp_path):
    rows = [*cells(pictures, 1), {"bytes": b"broken", "path": None}, None]
    unreadable: list[str] = []
    tree = save(tmp_path / "a", {"image": rows}, {"image": IMAGE})
    assert read(load(tree), unreadable=unreadable)["image_id"].tolist() == [0]
    assert unreadable == [f"{tmp_path}/a, row 1 (not an image file)", f"{tmp_path}/a, row 2 (empty)"]


def test_the_digest_changes_with_the_rows(pictures, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    other = [{"bytes": file.getvalue(), "path": None}] * 2
    columns = [cells(pictures, 2), cells(pictures, 3), other]
    trees = [save(tmp_path / str(i), {"image": rows}, {"image": IMAGE}) for i, rows in enumerate(columns)]
    link, digests = tmp_path / "link", set()
    for tree in trees:  # the same path, with other rows each time
        link.unlink(missing_ok=True)
        link.symlink_to(tree["path"])
        config = load(tree, path=str(link))
        digests.add(open_source(config).digest)
        np.testing.assert_array_equal(read(config)["image"], read(load(tree))["image"])
    assert len(digests) == 3


def test_wrong_folders_are_refused(pictures, tmp_path, s3, monkeypatch):
    with pytest.raises(InputError, match=r"neither state\.json nor dataset_dict\.json"):
        open_source(load({"source": "datasets", "path": str(pictures.folder)}))
    tree = make_saved_dataset(pictures)
    with pytest.raises(InputError, match=r"images\.split: .* single Dataset"):
        open_source(load(tree, split="train"))
    with pytest.raises(InputError, match=r"images\.label_column: .* no column 'y'; it has \['image', 'l"):
        open_source(load(tree, label_column="y"))
    (pictures.folder / "state.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be opened"):
        open_source(load({"source": "datasets", "path": str(pictures.folder)}))
    monkeypatch.setattr("ka_ray.config.base.exists", lambda path: True)
    with pytest.raises(InputError, match="needs a local folder"):
        open_source(load(tree, path=f"{s3}/saved"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'ka_ray\[hf\]'"):
        open_source(load(tree))
