"""Test columns of tables that hold other types than the config says, and labels as pandas writes them."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_makers import load, read, write_pictures

from ka_ray.errors import InputError
from ka_ray.images import open_source
from ka_ray.images.cells import text_to_label, to_label
from ka_ray.images.split import ImageSet, read_sample

NAMES = ("cat", "dog")


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path)


@pytest.fixture
def write_table(pictures):
    """Return a function that writes images, and a column of labels for the first of them, as Parquet."""

    def write(labels, **keys):
        columns = {"image": pictures.contents[: len(labels)], "label": labels}
        path = pictures.folder / "images.parquet"
        pd.DataFrame(columns).to_parquet(path) if isinstance(labels, pd.Series) else pq.write_table(
            pa.table(columns), path
        )
        return load({"source": "parquet", "path": str(path), "label_column": "label", **keys})

    return write


@pytest.mark.parametrize(
    ("value", "label"), [(1, "dog"), (1.0, "dog"), (0.0, "cat"), (math.nan, ""), (None, ""), ("x", "x")]
)
def test_a_label_is_a_name_or_a_whole_number(value, label):
    assert to_label(value, NAMES) == label


@pytest.mark.parametrize("value", [0.5, math.inf, [1], {"a": 1}, True, b"cat", 2.0, -1.0])
def test_other_labels_are_refused(value):
    with pytest.raises(InputError, match=r"images\.(label_column|classes): label"):
        to_label(value, NAMES)


@pytest.mark.parametrize(("text", "label"), [("1", "dog"), ("1.0", "dog"), ("", "")])
def test_a_label_in_a_csv_may_be_a_whole_number_with_a_point(text, label):
    assert text_to_label(text, NAMES) == label


@pytest.mark.parametrize("text", ["1.5", "nan", "1.0.0", "one"])
def test_other_numbers_in_a_csv_are_refused(text):
    with pytest.raises(InputError, match=r"images\.classes: label"):
        text_to_label(text, NAMES)


def test_integers_with_missing_values_are_floats_in_pandas_and_still_labels(write_table):
    labels = pd.Series([0, None, 1])
    assert labels.dtype == np.float64
    assert read(write_table(labels, classes=list(NAMES)))["label"].tolist() == ["cat", "", "dog"]


def test_categories_of_pandas_are_names(write_table):
    labels = pd.Series(["dog", None, "cat"], dtype="category")
    assert read(write_table(labels))["label"].tolist() == ["dog", "", "cat"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["cat"], ["dog"]], r"images\.label_column: column 'label' of .* holds list<.*labels are text"),
        ([{"a": 1}, {"a": 2}], r"images\.label_column: column 'label' of .* holds struct<"),
        ([b"cat", b"dog"], r"images\.label_column: column 'label' of .* holds binary"),
        ([True, False], r"images\.label_column: column 'label' of .* holds bool"),
    ],
)
@pytest.mark.parametrize("classes", [None, list(NAMES)])
def test_a_column_that_cannot_hold_labels_is_refused_when_it_is_listed(write_table, labels, message, classes):
    with pytest.raises(InputError, match=message):
        open_source(write_table(labels, classes=classes))


def test_floats_without_names_ask_for_the_names(write_table):
    with pytest.raises(InputError, match=r"images\.classes: column 'label' of .* holds double"):
        open_source(write_table([0.0, 1.0]))


@pytest.mark.parametrize("column", [[1, 2], ["a.png", "b.png"], [[1.0], [2.0]]])
def test_a_column_that_cannot_hold_images_is_refused_when_it_is_listed(tmp_path, column):
    pq.write_table(pa.table({"image": column}), tmp_path / "images.parquet")
    with pytest.raises(InputError, match=r"images\.image_column: column 'image' of .* not images"):
        open_source(load({"source": "parquet", "path": str(tmp_path)}))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"path": [1, 2]}, r"images\.path_column: column 'path' of .* holds int64, not text"),
        ({"path": ["a.png"], "label": [["cat"]]}, r"images\.label_column: column 'label' of .* holds list"),
        ({"path": ["a.png"], "label": [1]}, r"images\.classes: column 'label' of .* holds int64, not text"),
    ],
)
def test_columns_of_a_list_have_their_types(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "list.parquet")
    keys = {"label_column": "label"} if "label" in table else {}
    with pytest.raises(InputError, match=message):
        open_source(load({"source": "list", "path": str(tmp_path / "list.parquet"), **keys}))


def test_text_of_a_list_may_be_stored_as_bytes(tmp_path):
    """As older programs write columns of Parquet files."""
    columns = {name: [text.encode()] for name, text in {"path": "a.png", "label": "cat"}.items()}
    pq.write_table(pa.table(columns), tmp_path / "list.parquet")
    source = open_source(
        load({"source": "list", "path": str(tmp_path / "list.parquet"), "label_column": "label"})
    )
    assert source.labels == ["cat"]
    assert source.class_names == ("cat",)


@pytest.mark.parametrize(("allowed", "is_error"), [(0, True), (3, True), (4, False)])
def test_a_sample_without_one_readable_image_ends_the_run_before_it_starts(tmp_path, allowed, is_error):
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    config = load({"source": "folder", "path": str(tmp_path), "labelled": False, "max_unreadable": allowed})
    source = open_source(config)
    images = ImageSet(config, source, np.arange(source.num_images))
    if is_error:
        with pytest.raises(InputError, match=r"none of 4 images .*0\.png \(not an image file\)"):
            read_sample(images)
    else:
        assert read_sample(images) is None
