"""Test that what needs no time is refused before networks are read and images are listed."""

import pytest

import ka_ray
from ka_ray.errors import InputError
from ka_ray.runs.first_checks import check_first
from ka_ray.runs.output_lock import lock_folder


@pytest.fixture
def empty(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def no_model_is_read(monkeypatch):
    def fail(*arguments):
        raise AssertionError("a model was read")

    monkeypatch.setattr("ka_ray.workflows.merge.describe_teachers", fail)
    monkeypatch.setattr("ka_ray.runs.setup.describe_teachers", fail)


def test_an_empty_folder_is_refused_before_models_are_read(empty, tmp_path, no_model_is_read):
    models = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for model in models:
        model.touch()
    with pytest.raises(InputError, match=rf"images.path: the folder {empty} is empty"):
        ka_ray.merge(models, empty, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["images", "evaluation.images"])
def test_the_folders_of_all_parts_are_looked_at(config_tree, load_config, empty, tmp_path, where):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "some.file").touch()
    part = {"source": "folder", "labelled": False}
    mixed = {
        "source": "mixed",
        "size": 8,
        "parts": [{**part, "path": str(tmp_path / "full")}, {**part, "path": str(empty)}],
    }
    if where == "images":
        config_tree["images"] = mixed
    else:
        config_tree["evaluation"] = {"images": mixed}
    with pytest.raises(InputError, match=rf"images.path: the folder {empty} is empty"):
        check_first(load_config())
    (empty / "one").touch()
    check_first(load_config())


def test_an_output_folder_in_use_is_refused_before_models_are_read(load_config, tmp_path, no_model_is_read):
    config = load_config(f"output={tmp_path / 'out'}")
    with (
        lock_folder(config.output_dir),
        pytest.raises(InputError, match=r"another command is working in it: host .*, process \d+"),
    ):
        ka_ray.amalgamate(config)
    with pytest.raises(AssertionError, match="a model was read"):
        ka_ray.amalgamate(config)


def test_a_folder_that_cannot_be_read_is_left_to_the_listing(config_tree, load_config, empty, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(empty), "iterdir", refuse)
    config_tree["images"] = {"source": "folder", "path": str(empty), "labelled": False, "size": 8}
    check_first(load_config())
