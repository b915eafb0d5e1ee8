"""Images whose paths are listed in a CSV, TSV, Parquet or text file."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_makers import CLASSES, LABELS, TARGETS, load, make_list, read

from ka_ray.config import ClusterContext, ListImages
from ka_ray.errors import InputError
from ka_ray.images import open_source
from ka_ray.storage.uris import to_path


def write_list(pictures, text: str | bytes, name: str = "list.csv", **keys):
    path = pictures.folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load({"source": "list", "path": str(path), **keys})


def paths_of(config) -> list[str]:
    return [path for chunk in open_source(config).chunks for path, _ in chunk.payload]


def test_a_list_keeps_its_own_order_and_may_name_a_file_twice(pictures):
    config = write_list(pictures, "path\ndog/04.png\ncat/00.png\ndog/04.png\n")
    np.testing.assert_array_equal(read(config)["image"], pictures.pixels()[[4, 0, 4]])
    assert set(read(config)["label"]) == {""}
    assert open_source(config).class_names is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'label,path\r\n"a, b",cat/00.png\r\nc,"dog/04.png"\r\n'),
        ("list.csv", '\ufefflabel,path\n"a, b",cat/00.png\n\nc,dog/04.png'),
        ("list.TSV", "path\tother\tlabel\ncat/00.png\t1.5\ta, b\ndog/04.png\tNA\tc\n"),
    ],
    ids=["quotes and CRLF", "byte order mark and empty line", "tabs"],
)
def test_the_usual_forms_of_csv_are_read(pictures, name, text):
    config = write_list(pictures, text, name, label_column="label")
    np.testing.assert_array_equal(read(config)["image"], pictures.pixels()[[0, 4]])
    assert read(config)["label"].tolist() == ["a, b", "c"]
    assert open_source(config).class_names == ("a, b", "c")


def test_labels_of_csv_are_text_unless_classes_are_given(pictures):
    text = "path,label\ncat/00.png,01\ndog/04.png,NA\nfish/08.png,\n"
    assert read(write_list(pictures, text, label_column="label"))["label"].tolist() == ["01", "NA", ""]
    text = "path,label\ncat/00.png,1\ndog/04.png,\n"
    config = write_list(pictures, text, label_column="label", classes=list(CLASSES))
    assert read(config)["label"].tolist() == ["dog", ""]
    assert open_source(config).class_names == CLASSES


@pytest.mark.parametrize("labels", [LABELS, list(TARGETS)], ids=["names", "integers"])
def test_a_parquet_list_equals_a_csv_list(pictures, labels):
    path = pictures.folder / "list.parquet"
    pq.write_table(pa.table({"file": pictures.names, "kind": [None, *labels[1:]]}), path)
    keys = {"path_column": "file", "label_column": "kind"}
    classes = {} if labels is LABELS else {"classes": list(CLASSES)}
    columns = read(load({"source": "list", "path": str(path), **keys, **classes}))
    assert columns["label"].tolist() == ["", *LABELS[1:]]
    np.testing.assert_array_equal(columns["image"], pictures.pixels())


def test_a_text_file_has_one_path_per_line(pictures):
    config = write_list(pictures, "cat/00.png\r\n\r\ndog/04.png", "list.txt")
    np.testing.assert_array_equal(read(config)["image"], pictures.pixels()[[0, 4]])


def test_paths_may_be_absolute_relative_to_root_or_uris(pictures, s3, tmp_path):
    remote = to_path(f"{s3}/images")
    remote.fs.put(str(pictures.folder / "fish"), remote.path, recursive=True)
    (tmp_path / "lists").mkdir()
    text = f"path\ncat/00.png\n{pictures.folder}/dog/04.png\n{s3}/images/08.png\n"
    (tmp_path / "lists" / "a.csv").write_text(text)
    tree = {"source": "list", "path": str(tmp_path / "lists" / "a.csv"), "root": str(pictures.folder)}
    np.testing.assert_array_equal(read(load(tree))["image"], pictures.pixels()[[0, 4, 8]])


def test_a_list_on_s3_names_files_beside_it(pictures, s3):
    make_list(pictures)
    remote = to_path(f"{s3}/set")
    remote.fs.put(str(pictures.folder), remote.path, recursive=True)
    columns = read(load({"source": "list", "path": f"{s3}/set/list.csv", "label_column": "label"}))
    assert columns["label"].tolist() == LABELS
    np.testing.assert_array_equal(columns["image"], pictures.pixels())


def test_paths_in_another_encoding_are_read(pictures):
    (pictures.folder / "cat" / "00.png").rename(pictures.folder / os.fsdecode(b"caf\xe9.png"))
    config = write_list(pictures, b"path,label\ncaf\xe9.png,ch\xe2t\n", label_column="label")
    assert read(config)["label"].tolist() == [r"ch\xe2t"]


def test_missing_and_damaged_files_are_reported_by_name(pictures):
    (pictures.folder / "bad.png").write_bytes(b"no image")
    unreadable: list[str] = []
    columns = read(write_list(pictures, "path\nbad.png\ncat/00.png\ngone.png\n"), unreadable=unreadable)
    assert columns["image_id"].tolist() == [1]
    assert unreadable == [
        f"{pictures.folder}/bad.png (not an image file)",
        f"{pictures.folder}/gone.png (empty)",
    ]


def test_the_digest_changes_with_paths_and_labels(pictures):
    texts = ["path,l\ncat/00.png,a\n", "path,l\ncat/01.png,a\n", "path,l\ncat/00.png,b\n"]
    assert len({open_source(write_list(pictures, text, label_column="l")).digest for text in texts}) == 3


@pytest.mark.parametrize(
    ("text", "keys", "message"),
    [
        (
            "file,label\na.png,b\n",
            {},
            r"images\.path_column: .* no column 'path'; it has \['file', 'l",
        ),
        (
            "path\na.png\n",
            {"label_column": "label"},
            r"images\.label_column: .* no column 'label'; it has \['path'\]",
        ),
        ("path,path\na,b\n", {}, r"several columns 'path'"),
        ("cat/00.png\ncat/01.png\n", {}, r"it has \['cat/00\.png'\], by its first line, the header"),
        ("", {}, "the list .* is empty"),
        ("path\n", {}, "the list .* is empty"),
        ("path,l\na.png,b\n,c\n", {}, r"row 1 of .* has no path"),
        ("path,l\na.png,b\nc.png\n", {}, "cannot be read: .*Expected 2 columns, got 1"),
        ("path,l\na.png,3\n", {"label_column": "l", "classes": ["a"]}, "label 3 found, but only 1 classes"),
        ("path,l\na.png,x\n", {"label_column": "l", "classes": ["a"]}, "label 'x' is no integer; leave out"),
        ("path\nhttps://me:secret@host/a.png\n", {}, "credentials in the URI"),
        ("path\na.png\n".encode("utf-16"), {}, "UTF-16"),
    ],
)
def test_a_wrong_list_is_refused(pictures, text, keys, message):
    with pytest.raises(InputError, match=message):
        open_source(write_list(pictures, text, **keys))


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("list.xlsx", {}, r"must be a file that ends in \.csv, \.tsv, \.parquet, \.txt"),
        ("list.txt", {"label_column": "label"}, r"images\.label_column: .* is a text file"),
        ("list.parquet", {}, "list .* cannot be read"),
    ],
)
def test_a_wrong_kind_of_file_is_refused(pictures, name, keys, message):
    with pytest.raises(InputError, match=message):
        open_source(write_list(pictures, "path\na.png\n", name, **keys))


def test_a_list_that_is_sent_with_a_job_needs_root(pictures, monkeypatch):
    make_list(pictures)
    monkeypatch.chdir(pictures.folder.parent)
    tree = {"source": "list", "path": "pictures/list.csv", "size": 8}
    with pytest.raises(ValueError, match=r"set root, too: the list pictures/list\.csv is sent"):
        ListImages.model_validate(tree, context=ClusterContext())
    context = ClusterContext()
    ListImages.model_validate({**tree, "root": "pictures"}, context=context)
    assert context.local_paths == ["pictures/list.csv", "pictures"]
    ListImages.model_validate({**tree, "path": "/far/list.csv"}, context=ClusterContext())
