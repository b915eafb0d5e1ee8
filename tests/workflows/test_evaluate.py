"""`ka-ray evaluate` finds out by the path what kind of source it is."""

import pytest

from ka_ray.config.source_kind import guess_source
from ka_ray.runs.student_images import build_images_config
from ka_ray.student import Student, save_student


@pytest.mark.parametrize(
    ("files", "path", "kind"),
    [
        (["cat/1.png"], ".", "folder"),
        (["cat/1.png", "all.tar", "labels.csv"], ".", "folder"),
        (["labels.CSV"], "labels.CSV", "list"),
        (["labels.tsv"], "labels.tsv", "list"),
        (["1.tar"], "1.tar", "webdataset"),
        (["1.tar", "2.tar", "sizes.json"], ".", "webdataset"),
        (["a.parquet"], "a.parquet", "parquet"),
        (["a.parquet", "cat/1.png"], ".", "parquet"),
        (["state.json", "data-00000-of-00001.arrow"], ".", "datasets"),
        (["dataset_dict.json", "train/state.json"], ".", "datasets"),
    ],
)
def test_the_kind_of_source_is_guessed_by_the_path(tmp_path, files, path, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert guess_source(tmp_path / path) == kind


def test_keys_of_the_source_can_be_set(tmp_path, make_spec):
    save_student(Student(make_spec("plain", {"conv1": 4})), tmp_path / "run")
    (tmp_path / "list.csv").write_text("path,kind\n")
    config = build_images_config(tmp_path / "run", str(tmp_path / "list.csv"), ["label_column=kind"])
    assert (config.source, config.label_column) == ("list", "kind")
    assert build_images_config(tmp_path / "run", "digits").split == "test"
