"""Class names: every form in which training scripts write them gives the same names, in the same order."""

import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from ka_ray.config import FolderImages, ParquetImages, TeacherConfig
from ka_ray.images import open_source, read_chunk

NAMES = ("cat", "dog, hound", "caf\u00e9")

FORMS = {
    "lines": "cat\ndog, hound\ncaf\u00e9\n",
    "lines of Windows": "\ufeffcat\r\ndog, hound\r\ncaf\u00e9\r\n",
    "blank lines and spaces": "\n  cat\n\n\ndog, hound  \ncaf\u00e9",
    "decomposed letters": "cat\ndog, hound\ncafe\u0301\n",
    "JSON list": json.dumps(NAMES),
    "JSON list with byte order mark": "\ufeff" + json.dumps(NAMES, ensure_ascii=False),
    "JSON index to name": json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]}),
    "JSON name to index": json.dumps({NAMES[2]: 2, NAMES[0]: 0, NAMES[1]: 1}),
    "Python list": repr(list(NAMES)),
    "Python tuple in brackets": repr([*NAMES]) + "\n",
    "Python dict": repr({0: NAMES[0], 2: NAMES[2], 1: NAMES[1]}),
    "Python class_to_idx": repr({NAMES[1]: 1, NAMES[0]: 0, NAMES[2]: 2}),
}


def classes_in(path: Path) -> tuple[str, ...]:
    return TeacherConfig.model_validate({"name": "a", "network": "plain", "classes": str(path)}).classes


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_every_form_gives_the_same_names(tmp_path, text):
    path = tmp_path / "classes"
    path.write_bytes(text.encode())
    assert classes_in(path) == NAMES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["cat", 3]', "holds something else than class names"),
        ('{"0": "cat", "2": "dog"}', r"the indices must be 0 \.\.\. 1, each once"),
        ('{"cat": 0, "dog": 0}', r"the indices must be 0 \.\.\. 0, each once|0 \.\.\. 1, each once"),
        ('{"cat": "dog", "a": "b"}', "is a mapping, but neither of index -> name nor of name -> index"),
        ('["cat", "dog"', "accepted: a text file with one name per line, or JSON"),
        ("{print('x'): 1}", "accepted: a text file with one name per line, or JSON"),
        ('["cat", "cat"]', "class named twice: cat"),
        ('["caf\u00e9", "cafe\u0301"]', "class named twice: caf\u00e9"),
    ],
)
def test_other_content_is_refused(tmp_path, text, message):
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(ValidationError, match=message):
        classes_in(path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_folder_names_match_class_names_in_another_unicode_form(tmp_path, form):
    folder = tmp_path / unicodedata.normalize(form, NAMES[2])
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    config = FolderImages(source="folder", path=tmp_path, size=8)
    source = open_source(config)
    assert source.class_names == (NAMES[2],)
    only = frozenset(NAMES)
    (columns,) = read_chunk(config, source.read, source.chunks[0], np.arange(1), only, pytest.fail)
    assert columns["label"].tolist() == [NAMES[2]]


def test_labels_of_parquet_match_class_names_in_another_unicode_form(tmp_path):
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    table = pa.table({"image": [content.getvalue()], "label": [unicodedata.normalize("NFD", NAMES[2])]})
    pq.write_table(table, tmp_path / "a.parquet")
    config = ParquetImages(source="parquet", path=tmp_path, size=8, label_column="label")
    source, only = open_source(config), frozenset(NAMES)
    (columns,) = read_chunk(config, source.read, source.chunks[0], np.arange(1), only, pytest.fail)
    assert columns["label"].tolist() == [NAMES[2]]
