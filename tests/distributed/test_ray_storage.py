"""Where Ray stores its own files: in a local folder, or under a URI through its fsspec file system."""

import pickle

import pytest

from ka_ray.config import RayConfig, Resources, TuneConfig
from ka_ray.distributed.ray_storage import storage_arguments
from ka_ray.distributed.train import WorkerGroup, train_in_workers
from ka_ray.distributed.trials import JOURNAL, Search, search
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import make_folder
from ka_ray.storage.uris import to_path


def test_a_local_folder_is_passed_on_as_a_path(tmp_path):
    assert storage_arguments(tmp_path) == {"storage_path": str(tmp_path)}


def test_a_uri_is_written_through_its_fsspec_file_system(s3):
    options = pickle.loads(pickle.dumps(storage_arguments(to_path(f"{s3}/run/ray"))))
    assert options["storage_path"] == f"{s3.removeprefix('s3://')}/run/ray"
    with options["storage_filesystem"].open_output_stream(f"{options['storage_path']}/x") as stream:
        stream.write(b"content")
    assert to_path(f"{s3}/run/ray/x").read_bytes() == b"content"


@pytest.mark.ray
@pytest.mark.slow
def test_records_of_ray_and_files_of_workers_are_written_at_a_uri(cluster, tmp_path):
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
    # A second experiment has a new name, because Ray would resume the one with records.
    assert train() == {"digits-1", "digits-2"}


@pytest.mark.ray
@pytest.mark.slow
def test_optuna_continues_its_journal_at_a_uri(cluster, tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    folder, config = to_path(f"file://{tmp_path}/run"), TuneConfig(algorithm="optuna")
    make_folder(folder)

    def run_point(point, device, report, shared):
        report({"agreement": 0.5, "epochs": 0, "parameters": point["width.conv1"]})

    finished_points, journal_lines = [], []
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
        assert search(work, run_point, None, lambda point, result: finished_points.append(point)) == {}
        journal_lines.append((folder / JOURNAL).read_text().count("\n"))
    assert len(finished_points) == 4
    # The second search has continued the journal of the first.
    assert journal_lines[1] >= 2 * journal_lines[0] - 2
