"""Where Ray keeps its own records: under a path as ever, under a URI through its fsspec file system."""

import pickle

import pytest

from ka_ray.config import RayConfig, Resources, TuneConfig
from ka_ray.distributed.ray_storage import storage_arguments
from ka_ray.distributed.train import WorkerGroup, train_in_workers
from ka_ray.distributed.trials import JOURNAL, Search, search
from ka_ray.storage.files import list_files, make_folder
from ka_ray.storage.uris import to_path


def test_a_path_stays_a_path(tmp_path):
    assert storage_arguments(tmp_path) == {"storage_path": str(tmp_path)}


def test_a_uri_is_written_through_its_own_file_system(s3):
    given = pickle.loads(pickle.dumps(storage_arguments(to_path(f"{s3}/run/ray"))))
    assert given["storage_path"] == f"{s3.removeprefix('s3://')}/run/ray"
    with given["storage_filesystem"].open_output_stream(f"{given['storage_path']}/x") as stream:
        stream.write(b"content")
    assert to_path(f"{s3}/run/ray/x").read_bytes() == b"content"


@pytest.mark.ray
def test_workers_leave_their_records_and_files_at_a_uri(cluster, tmp_path):
    folder = to_path(f"file://{tmp_path}/run")
    make_folder(folder)

    def work(device, report):
        (folder / "result").write_text("done")

    def train():
        group = WorkerGroup(RayConfig(workers=1), Resources(cpu=0.5), folder, "digits")
        train_in_workers(work, group, print, print)
        assert (folder / "result").read_text() == "done"
        return {name.split("/")[1] for name in list_files(folder) if name.startswith("ray/")}

    assert train() == {"digits-1"}
    assert train() == {"digits-1", "digits-2"}  # the name of an experiment with records would resume it


@pytest.mark.ray
def test_optuna_remembers_trials_at_a_uri(cluster, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    folder, config = to_path(f"file://{tmp_path}/run"), TuneConfig(algorithm="optuna")
    make_folder(folder)

    def run_point(point, device, tell, shared):
        tell({"agreement": 0.5, "epochs": 0, "parameters": point["width.conv1"]})

    told, sizes = [], []
    for _ in range(2):
        work = Search(
            config,
            Resources(cpu=0.5),
            1,
            None,
            {"width.conv1": (2, 3, 5)},
            2,
            epochs=0,
            seed=0,
            folder=folder,
        )
        assert search(work, run_point, None, lambda point, result: told.append(point)) == {}
        sizes.append((folder / JOURNAL).read_text().count("\n"))
    assert len(told) == 4
    assert sizes[1] >= 2 * sizes[0] - 2  # the second search went on in the first one's journal
