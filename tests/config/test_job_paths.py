"""Configs whose paths lie on a cluster, and paths in the folder that a Ray job is unpacked in."""

import pytest

from ka_ray.config import ClusterContext, Config, differing_keys, without_job_folder
from ka_ray.errors import InputError

UNPACKED = "/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_{}"


@pytest.fixture
def load_for_cluster(tmp_path, load_config, monkeypatch):
    """Load the run of ``load_config`` as one that is sent to a cluster; gives the noted paths, too."""
    monkeypatch.chdir(tmp_path)
    load_config()

    def load(*overrides: str) -> tuple[Config, list[str]]:
        cluster = ClusterContext()
        return Config.load("run.yaml", overrides, cluster), cluster.local_paths

    return load


def test_absolute_paths_and_uris_are_on_the_cluster_and_relative_ones_here(load_for_cluster):
    config, here = load_for_cluster(
        "teachers.0.checkpoint=/nowhere/low.safetensors",
        "teachers.1.checkpoint=high.safetensors",
        "images={source: folder, path: 's3://bucket/photos', labelled: false, size: 8}",
    )
    assert str(config.teachers[0].checkpoint) == "/nowhere/low.safetensors"
    assert here == ["high.safetensors"]


def test_a_relative_path_must_exist_here(load_for_cluster):
    with pytest.raises(InputError, match=r"teachers\.0\.checkpoint: .*missing\.pt does not exist"):
        load_for_cluster("teachers.0.checkpoint=missing.pt")


def test_files_of_class_names_are_read_here_or_left_to_the_job(load_for_cluster, tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    config, here = load_for_cluster("teachers.0.classes=names.txt", "teachers.1.classes=/there/names.txt")
    assert config.teachers[0].classes == ("a", "b", "c")
    assert "names.txt" in here
    assert "/there/names.txt" not in here
    assert len(config.teachers[1].classes) == 2


def test_the_other_checks_stay(load_for_cluster):
    with pytest.raises(InputError, match=r"joint\.rate: unknown key"):
        load_for_cluster("joint.rate=1")


def test_without_a_cluster_absolute_paths_must_exist(load_config):
    with pytest.raises(InputError, match=r"/nowhere/low\.safetensors does not exist"):
        load_config("teachers.0.checkpoint=/nowhere/low.safetensors")


def test_an_output_in_a_jobs_folder_is_refused(load_config, tmp_path, monkeypatch):
    folder = tmp_path / UNPACKED.format("1f").lstrip("/")
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for given in ([], ["output=results"]):
        with pytest.raises(InputError, match=r"lies in the job's temporary working directory.*give --output"):
            load_config(*given)
    assert load_config("output=/shared/run").output_dir.as_posix() == "/shared/run"
    assert load_config("output=/shared/working_dir_files/run").output is not None


def test_a_job_that_is_unpacked_elsewhere_has_the_same_config(load_config):
    def dumped(folder: str) -> dict[str, object]:
        tree = load_config().model_dump(mode="json")
        for teacher in tree["teachers"]:
            teacher["checkpoint"] = f"{folder}/{teacher['name']}.safetensors"
        return tree

    first, second = dumped(UNPACKED.format("1f")), dumped(UNPACKED.format("2e"))
    assert differing_keys(first, second) == {}
    other = dumped(UNPACKED.format("2e") + "/old")
    assert differing_keys(first, other) == {
        "teachers.0.checkpoint": ("low.safetensors", "old/low.safetensors"),
        "teachers.1.checkpoint": ("high.safetensors", "old/high.safetensors"),
    }
    assert without_job_folder(first) == dumped("x") | {
        "teachers": [t | {"checkpoint": f"{t['name']}.safetensors"} for t in first["teachers"]]
    }
