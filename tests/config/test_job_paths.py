"""Configs whose paths are on a cluster, and paths in the folder in which Ray unpacks a job."""

import pytest

from ka_ray.config import ClusterContext, Config, differing_keys, without_job_folder
from ka_ray.errors import InputError

RAY_JOB_FOLDER = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_{}"


@pytest.fixture
def load_for_cluster(tmp_path, load_config, monkeypatch):
    """Return a function that loads a config for a cluster: the config, and the paths to send with the job."""
    monkeypatch.chdir(tmp_path)
    load_config()

    def load(*overrides: str) -> tuple[Config, list[str]]:
        cluster = ClusterContext()
        return Config.load("run.yaml", overrides, cluster), cluster.local_paths

    return load


def test_absolute_paths_and_uris_are_on_the_cluster_and_relative_paths_are_local(load_for_cluster):
    config, local_paths = load_for_cluster(
        "teachers.0.checkpoint=/nowhere/low.safetensors",
        "teachers.1.checkpoint=high.safetensors",
        "images={source: folder, path: 's3://bucket/photos', labelled: false, size: 8}",
    )
    assert str(config.teachers[0].checkpoint) == "/nowhere/low.safetensors"
    assert local_paths == ["high.safetensors"]


def test_a_relative_path_must_exist_locally(load_for_cluster):
    with pytest.raises(InputError, match=r"teachers\.0\.checkpoint: .*missing\.pt does not exist"):
        load_for_cluster("teachers.0.checkpoint=missing.pt")


def test_files_of_class_names_are_read_locally_or_left_to_the_job(load_for_cluster, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    config, local_paths = load_for_cluster(
        "teachers.0.classes=names.txt", "teachers.1.classes=/there/names.txt"
    )
    assert config.teachers[0].classes == ("a", "b", "c")
    assert "names.txt" in local_paths
    assert "/there/names.txt" not in local_paths
    assert len(config.teachers[1].classes) == 2


def test_unknown_keys_are_refused_also_in_a_config_for_a_cluster(load_for_cluster):
    with pytest.raises(InputError, match=r"joint\.rate: unknown key"):
        load_for_cluster("joint.rate=1")


def test_absolute_paths_must_exist_if_the_config_is_not_for_a_cluster(load_config):
    with pytest.raises(InputError, match=r"/nowhere/low\.safetensors does not exist"):
        load_config("teachers.0.checkpoint=/nowhere/low.safetensors")


def test_an_output_in_the_temporary_folder_of_a_ray_job_is_refused(load_config, tmp_path, monkeypatch):
    folder = tmp_path / RAY_JOB_FOLDER.format("1f").lstrip("/")
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for given in ([], ["output=results"]):
        with pytest.raises(InputError, match=r"lies in the job's temporary working directory.*give --output"):
            load_config(*given)
    assert load_config("output=/shared/run").output_dir.as_posix() == "/shared/run"
    assert load_config("output=/shared/working_dir_files/run").output is not None


def test_a_job_that_ray_unpacks_in_another_folder_has_the_same_config(load_config):
    def dump_with_checkpoints_in(folder: str) -> dict[str, object]:
        tree = load_config().model_dump(mode="json")
        for teacher in tree["teachers"]:
            teacher["checkpoint"] = f"{folder}/{teacher['name']}.safetensors"
        return tree

    first, second = (
        dump_with_checkpoints_in(RAY_JOB_FOLDER.format("1f")),
        dump_with_checkpoints_in(RAY_JOB_FOLDER.format("2e")),
    )
    assert differing_keys(first, second) == {}
    other = dump_with_checkpoints_in(RAY_JOB_FOLDER.format("2e") + "/old")
    assert differing_keys(first, other) == {
        "teachers.0.checkpoint": ("low.safetensors", "old/low.safetensors"),
        "teachers.1.checkpoint": ("high.safetensors", "old/high.safetensors"),
    }
    assert without_job_folder(first) == dump_with_checkpoints_in("x") | {
        "teachers": [t | {"checkpoint": f"{t['name']}.safetensors"} for t in first["teachers"]]
    }
