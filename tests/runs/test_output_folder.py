"""Test the output folder, at a path or at a URI: its preparation, refusals, and the check of free space."""

from types import SimpleNamespace

import pytest
from PIL import Image

from ka_ray import predict
from ka_ray.errors import InputError
from ka_ray.runs import output_folder as output
from ka_ray.runs.output_folder import (
    CONFIG,
    check_disk,
    load_finished_student,
    load_run_id,
    prepare_output_dir,
    save_run_id,
)
from ka_ray.storage.files import read_json, write_json, write_text
from ka_ray.storage.uris import to_path
from ka_ray.student import Student, save_student


@pytest.fixture(params=["local", "file", "s3"])
def location(request, tmp_path, monkeypatch) -> str:
    """Return the path or URI of an output folder, on one of three file systems."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/runs/one"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/runs/one"


@pytest.fixture
def prepare_output(location, load_config):
    """Return a function that prepares the output folder for a run with overrides."""

    def prepare(*overrides: str):
        return prepare_output_dir(load_config(f"output={location}", "tracking.backend=none", *overrides))

    return prepare


def test_a_folder_is_prepared_and_accepted_again_with_the_same_config(prepare_output, location):
    folder = prepare_output()
    assert str(folder) == location
    assert read_json(folder / CONFIG)["output"] == location
    assert prepare_output("ray.workers=1") == folder
    assert read_json(folder / CONFIG)["ray"]["workers"] == 1
    assert load_run_id(folder) is None
    save_run_id(folder, "abc")
    assert load_run_id(folder) == "abc"


def test_another_config_is_refused_and_the_message_names_the_differing_keys(prepare_output):
    prepare_output()
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        prepare_output("seed=1")


def test_keys_that_an_earlier_version_did_not_have_are_taken_at_their_defaults(prepare_output):
    folder = prepare_output("scores.gate=none")
    saved = read_json(folder / CONFIG)
    earlier = {key: value for key, value in saved.items() if key != "factories"}
    earlier["teachers"] = [{k: v for k, v in t.items() if k != "final_activation"} for t in saved["teachers"]]
    write_json(folder / CONFIG, earlier)
    assert prepare_output("scores.gate=none") == folder

    del earlier["scores"]["gate"]
    write_json(folder / CONFIG, earlier)
    with pytest.raises(InputError, match=r"scores\.gate: 'auto' there, 'none' now"):
        prepare_output("scores.gate=none")


def test_a_folder_with_files_of_no_run_is_refused(prepare_output, location):
    folder = to_path(location)
    folder.mkdir(parents=True) if not location.startswith("s3") else None
    write_text(folder / "thesis.txt", "x")
    with pytest.raises(InputError, match="is not empty and no run made it"):
        prepare_output()


def test_a_missing_bucket_is_refused(s3, load_config):
    config = load_config("output=s3://no-such-bucket/x", "tracking.backend=none")
    with pytest.raises(InputError, match=r"output s3://no-such-bucket/x cannot be written to: .*bucket"):
        prepare_output_dir(config)


def test_a_remote_folder_without_a_tracking_uri_is_refused(s3, load_config, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load_config(f"output={s3}/run")
    with pytest.raises(
        InputError, match=r"tracking\.uri: with null, .*tracking\.uri=http.*tracking\.backend=none"
    ):
        prepare_output_dir(config)
    assert not (config.output_dir / CONFIG).exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert prepare_output_dir(config) == config.output_dir


def test_a_local_disk_must_have_space_for_the_features_not_yet_written(location, monkeypatch, tmp_path):
    monkeypatch.setattr(output.shutil, "disk_usage", lambda where: SimpleNamespace(free=1024**3))
    folder = to_path(location)
    check_disk(folder, 1024**3)
    if "://" in location:
        return check_disk(folder, 2 * 1024**3)  # the free space of a remote store is unknown, and not checked
    with pytest.raises(InputError, match=r"take 2\.0 GiB, .* has 1\.0 GiB free"):
        check_disk(folder, 2 * 1024**3)
    (tmp_path / "features").mkdir()
    with (tmp_path / "features" / "0.arrow").open("wb") as shard:
        shard.truncate(1024**3)
    return check_disk(folder, 2 * 1024**3, [tmp_path / "features"])


def test_an_output_that_is_a_file_is_refused(load_config, tmp_path):
    (tmp_path / "out").write_text("not a folder", encoding="utf-8")
    with pytest.raises(InputError, match=r"out is a file; give a folder as --output"):
        prepare_output_dir(load_config(f"output={tmp_path / 'out'}", "tracking.backend=none"))


@pytest.mark.parametrize(
    ("files", "warned"),
    [(("config.json",), True), (("config.json", "report.json"), False), ((), False)],  # the last one: a copy
)
def test_a_student_of_an_unfinished_run_is_noticed(tmp_path, make_spec, caplog, files, warned):
    save_student(Student(make_spec("plain", {"conv1": 4}, widths=[4])), tmp_path)
    for name in files:
        (tmp_path / name).touch()
    assert isinstance(load_finished_student(tmp_path), Student)
    expected = [f"the run in {tmp_path} has not finished: its student has not been evaluated"]
    assert [record.getMessage() for record in caplog.records] == (expected if warned else [])


def test_predictions_of_an_unfinished_run_come_with_a_warning(tmp_path, make_spec, caplog):
    save_student(Student(make_spec("plain", {"conv1": 4}, widths=[4])), tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    assert len(predict(tmp_path, tmp_path / "one.png")) == 1
    assert not caplog.records
    (tmp_path / "config.json").write_text("{}")
    assert len(predict(tmp_path, tmp_path / "one.png")) == 1
    assert "has not finished" in caplog.text
