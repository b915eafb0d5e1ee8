"""The output folder, at a path or at a URI: claimed, refused, and checked for room."""

from types import SimpleNamespace

import pytest

from ka_ray.errors import InputError
from ka_ray.runs import output_folder as output
from ka_ray.runs.output_folder import CONFIG, check_disk, load_run_id, prepare_output_dir, save_run_id
from ka_ray.storage.files import read_json, write_text
from ka_ray.storage.uris import to_path


@pytest.fixture(params=["local", "file", "s3"])
def place(request, tmp_path, monkeypatch) -> str:
    """Where a run shall go, on one of three file systems."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/runs/one"
    return f"{'file://' if request.param == 'file' else ''}{tmp_path}/runs/one"


@pytest.fixture
def claimed(place, load_config):
    """Claim the place for a run with some overrides."""

    def claim(*overrides: str):
        return prepare_output_dir(load_config(f"output={place}", "tracking.backend=none", *overrides))

    return claim


def test_a_folder_is_claimed_and_claimed_again_by_the_same_config(claimed, place):
    folder = claimed()
    assert str(folder) == place
    assert read_json(folder / CONFIG)["output"] == place
    assert claimed("ray.workers=1") == folder
    assert read_json(folder / CONFIG)["ray"]["workers"] == 1
    assert load_run_id(folder) is None
    save_run_id(folder, "abc")
    assert load_run_id(folder) == "abc"


def test_another_config_is_refused_with_the_differing_keys(claimed):
    claimed()
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        claimed("seed=1")


def test_a_folder_that_no_run_made_is_refused(claimed, place):
    folder = to_path(place)
    folder.mkdir(parents=True) if not place.startswith("s3") else None
    write_text(folder / "thesis.txt", "x")
    with pytest.raises(InputError, match="is not empty and no run made it"):
        claimed()


def test_a_bucket_that_is_not_there_is_refused(s3, load_config):
    config = load_config("output=s3://no-such-bucket/x", "tracking.backend=none")
    with pytest.raises(InputError, match=r"output s3://no-such-bucket/x cannot be written to: .*bucket"):
        prepare_output_dir(config)


def test_a_remote_folder_needs_another_place_for_tracking(s3, load_config, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = load_config(f"output={s3}/run")
    with pytest.raises(
        InputError, match=r"tracking\.uri: with null, .*tracking\.uri=http.*tracking\.backend=none"
    ):
        prepare_output_dir(config)
    assert not (config.output_dir / CONFIG).exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert prepare_output_dir(config) == config.output_dir


def test_room_is_needed_on_a_local_disk_for_what_does_not_stand_yet(place, monkeypatch, tmp_path):
    monkeypatch.setattr(output.shutil, "disk_usage", lambda where: SimpleNamespace(free=1024**3))
    folder = to_path(place)
    check_disk(folder, 1024**3)
    if "://" in place:
        return check_disk(folder, 2 * 1024**3)  # of a store nobody knows
    with pytest.raises(InputError, match=r"take 2\.0 GiB, .* has 1\.0 GiB free"):
        check_disk(folder, 2 * 1024**3)
    (tmp_path / "features").mkdir()
    with (tmp_path / "features" / "0.arrow").open("wb") as shard:
        shard.truncate(1024**3)
    return check_disk(folder, 2 * 1024**3, [tmp_path / "features"])
