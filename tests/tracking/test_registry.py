"""Test what MLflow keeps of a run beside parameters and metrics: text, tags, images, versions, load."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache as artifact_repositories

from ka_ray.config import TrackingConfig
from ka_ray.student import Student, StudentSpec
from ka_ray.tracking import NullTracker, open_tracker
from ka_ray.tracking.moved import follow_moved_folder
from ka_ray.tracking.records import StudentVersion, TrackedImages
from ka_ray.tracking.tolerant import TolerantTracker

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # from MLflow itself
CONFIG = TrackingConfig(system_metrics=False)
STUDENT = StudentVersion("pets", "# Pets", "union", 0.5, "digest")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("an output 100%")


@pytest.fixture
def student(make_spec: Callable[..., StudentSpec]) -> Student:
    return Student(make_spec("plain", {"conv1": 4}, widths=[4])).eval()


@pytest.fixture
def register(output: Path) -> Callable[..., str]:
    """Return a function that registers a model of a run of its own, and returns what the user is told."""

    def register(version: StudentVersion, run_id: str | None = None) -> str:
        told: list[str] = []
        with open_tracker(CONFIG, "run", output, run_id) as tracker:
            # An empty model will do, and takes no time.
            client = MlflowClient(tracker.tracking_uri)
            experiment = client.get_run(tracker.run_id).info.experiment_id
            tracker._model_id = client.create_logged_model(experiment, "student").model_id
            tracker.register_student(version, told.append)
        return told[0]

    return register


def client_of(output: Path) -> MlflowClient:
    with open_tracker(CONFIG, "other", output, None) as tracker:
        return MlflowClient(tracker.tracking_uri)


def test_text_tags_and_images_are_stored(output: Path) -> None:
    images = TrackedImages("training", "photos", "/data/photos", "d" * 32, 20)
    with open_tracker(CONFIG, "run", output, None) as tracker:
        tracker.describe("**good**\n\n| a |\n|---|\n")
        tracker.log_tags({"method": "start", "odd@key": "x" * 7000})
        tracker.log_images(images)
        tracker.log_images(replace(images, purpose="evaluation", source="s3://bucket/photos", digest="e"))
        tracker.log_images(images)  # a resumed run logs them again
    run = MlflowClient(tracker.tracking_uri).get_run(tracker.run_id)
    assert run.data.tags["mlflow.note.content"] == "**good**\n\n| a |\n|---|\n"
    assert (run.data.tags["method"], len(run.data.tags["odd_key"])) == ("start", 6000)
    found = {one.tags[0].value: one.dataset for one in run.inputs.dataset_inputs}
    assert len(run.inputs.dataset_inputs) == 2
    training = found["training"]
    assert (training.name, training.digest, training.source_type) == ("photos", "d" * 32, "local")
    assert json.loads(training.source) == {"uri": "/data/photos"}
    assert json.loads(training.profile) == {"num_images": 20}
    assert found["evaluation"].source_type == "s3"


def test_the_best_version_on_the_same_images_is_the_champion(
    output: Path, register: Callable[..., str]
) -> None:
    steps = [
        (STUDENT, "version 1, the new champion: the first version", "1"),
        (
            replace(STUDENT, value=0.6),
            r"version 2, the new champion: better, union 0.6000 against 0.5000",
            "2",
        ),
        (replace(STUDENT, value=0.55), "stays version 2: not better, union 0.5500 against 0.6000", "2"),
        (replace(STUDENT, value=0.9, judged_on="b"), "stays version 2: it was judged on other images", "2"),
        (replace(STUDENT, value=0.9, measure="agreement"), "stays version 2: it was judged on other", "2"),
        (replace(STUDENT, measure=""), "stays version 2: this one was not judged", "2"),
        (replace(STUDENT, value=0.61, card="last"), "version 7, the new champion: better", "7"),
    ]
    for version, told, champion in steps:
        assert told in register(version)
        found = client_of(output).get_model_version_by_alias("pets", "champion")
        assert str(found.version) == champion
    last = client_of(output).get_model_version_by_alias("pets", "champion")
    assert last.description == "last"
    assert last.tags == {"ka_ray.measure": "union", "ka_ray.value": "0.61", "ka_ray.judged_on": "digest"}


def test_a_resumed_run_is_registered_once(output: Path, register: Callable[..., str]) -> None:
    version = replace(STUDENT, name="resumed")
    register(version)
    [first] = client_of(output).search_model_versions("name = 'resumed'")
    assert register(version, first.run_id).endswith("resumed, version 1, the champion")
    assert len(client_of(output).search_model_versions("name = 'resumed'")) == 1


def test_a_student_that_was_not_logged_is_not_registered(output: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="is not logged"),
        open_tracker(CONFIG, "run", output, None) as tracker,
    ):
        tracker.register_student(STUDENT, print)


def test_files_and_models_are_found_after_the_output_folder_was_moved(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old run" / "out", tmp_path / "new 'run'" / "out_2"
    (tmp_path / "note.md").write_text("text")
    with open_tracker(CONFIG, "run", old, None) as tracker:
        tracker.log_artifact(tmp_path / "note.md")
        tracker.log_student(student)
        tracker.register_student(STUDENT, lambda told: None)
    new.parent.mkdir()
    shutil.move(old, new)
    assert follow_moved_folder(new)
    assert not follow_moved_folder(new)
    assert not follow_moved_folder(tmp_path)  # no database
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    pixels = np.zeros((2, *student.spec.view.shape), np.float32)
    with torch.no_grad():
        expected = student(torch.from_numpy(pixels)).numpy()
    for uri in (f"runs:/{tracker.run_id}/student", "models:/pets@champion"):
        model = mlflow.pyfunc.load_model(uri)
        np.testing.assert_allclose(model.predict(pixels), expected, atol=1e-5)
    monkeypatch.undo()
    artifact_repositories.clear()  # another process has not looked at the old place
    # A run that is resumed there finds its files, and adds to them.
    with open_tracker(CONFIG, "run", new, tracker.run_id) as resumed:
        resumed.log_artifact(tmp_path / "note.md", "again")
    found = MlflowClient(resumed.tracking_uri).list_artifacts(tracker.run_id)
    assert sorted(entry.path for entry in found) == ["again", "note.md"]
    assert not old.exists()


def test_the_load_of_the_machine_is_logged_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with open_tracker(TrackingConfig(), "run", tmp_path, None) as tracker:
        client = MlflowClient(tracker.tracking_uri)
        for _ in range(200):
            metrics = client.get_run(tracker.run_id).data.metrics
            if "system/cpu_utilization_percentage" in metrics:
                break
            tracker._system._monitor._shutdown_event.wait(0.05)
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert tracker._system._monitor._process is None  # its thread has ended
    assert "system/cpu_utilization_percentage" in client.get_run(tracker.run_id).data.metrics


def test_a_tracker_that_is_gone_keeps_versions_and_images_for_later() -> None:
    tried = []

    class Gone(NullTracker):
        tracking_uri = "sqlite:///x"

        def register_student(self, version: StudentVersion, notify: Callable[[str], None]) -> None:
            tried.append(version)
            if len(tried) == 1:
                raise OSError("gone")
            notify("told")

    said: list[str] = []
    tolerant = TolerantTracker(Gone(), said.append)
    tolerant.register_student(STUDENT, said.append)
    assert said == [
        "tracking: the student as a version of a model could not be stored; the run goes on: gone"
    ]
    tolerant.finish(failed=False)
    assert (tried, said[1:]) == ([STUDENT, STUDENT], ["told"])
