"""Test tracking: what MLflow stores of a run, resumed and child runs, and the tracker that stores nothing."""

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import torchvision.transforms as tv
from mlflow import MlflowClient
from PIL import ExifTags, Image, ImageOps

from ka_ray import load_student, predict
from ka_ray.config import Decoding, Preprocessing, TrackingConfig
from ka_ray.errors import InputError
from ka_ray.images.decode import decode_image
from ka_ray.images.views import view_of
from ka_ray.storage.files import write_text
from ka_ray.storage.uris import to_path
from ka_ray.student import Student, StudentSpec
from ka_ray.student.network import save_student
from ka_ray.tracking import TRACKERS, NullTracker, open_tracker, tracking_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # from MLflow itself
CONFIG = TrackingConfig()


@pytest.fixture(scope="module")
def output_and_printed_text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return an output folder with a database, and what was printed when it was made.

    The name of the folder has spaces, so that it needs quoting.
    """
    output = tmp_path_factory.mktemp("an output folder")
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        open_tracker(CONFIG, "first", output, None),
    ):
        pass
    return output, printed.getvalue()


@pytest.fixture
def output(output_and_printed_text: tuple[Path, str]) -> Path:
    return output_and_printed_text[0]


@pytest.fixture(autouse=True)
def _unchanged_global_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run the test in a temporary folder, and assert that it does not change MLflow's global state."""
    monkeypatch.chdir(tmp_path)
    before = mlflow.is_tracking_uri_set(), os.environ.get("MLFLOW_TRACKING_URI"), mlflow.active_run()
    yield
    assert (
        mlflow.is_tracking_uri_set(),
        os.environ.get("MLFLOW_TRACKING_URI"),
        mlflow.active_run(),
    ) == before


def make_client(output: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{output / 'mlflow.db'}")


def test_creating_a_database_prints_nothing(output_and_printed_text: tuple[Path, str]) -> None:
    assert output_and_printed_text[1] == ""
    assert (output_and_printed_text[0] / "mlflow.db").exists()


def test_params_are_stored_and_shortened_to_mlflows_limits(output: Path) -> None:
    params = {f"section.key_{i}": i for i in range(230)}
    with open_tracker(CONFIG, "run", output, None) as tracker:
        assert tracker.run_id is not None
        tracker.log_params({**params, "long": "x" * 7000, "none": None, "odd@key": 1, "k" * 300: "v"})
    run = make_client(output).get_run(tracker.run_id)
    expected = {key: str(value) for key, value in params.items()}
    expected |= {"long": "x" * 6000, "none": "None", "odd_key": "1", "k" * 250: "v"}
    assert run.data.params == expected
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")


def test_metrics_logged_from_several_threads_keep_their_steps(output: Path) -> None:
    with open_tracker(CONFIG, "run", output, None) as tracker:
        threads = [
            threading.Thread(
                target=tracker.log_metrics,
                args=({"codes/loss": 1 / step, "codes/other": 0},),
                kwargs={"step": step},
            )
            for step in (1, 2, 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        tracker.log_metrics({"evaluate/union": 0.75})
    found = make_client(output).get_metric_history(tracker.run_id, "codes/loss")
    assert sorted((metric.step, metric.value) for metric in found) == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert make_client(output).get_run(tracker.run_id).data.metrics["evaluate/union"] == 0.75


def test_files_and_folders_become_artifacts_in_the_output_folder(output: Path, tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"a")
    (tmp_path / "report.md").write_text("text")
    with open_tracker(CONFIG, "run", output, None) as tracker:
        tracker.log_artifact(tmp_path / "report.md")
        tracker.log_artifact(tmp_path / "report.md", "copies/deep")
        tracker.log_artifact(tmp_path / "figures")
    names = [entry.path for entry in make_client(output).list_artifacts(tracker.run_id)]
    assert names == ["copies", "figures", "report.md"]
    assert [e.path for e in make_client(output).list_artifacts(tracker.run_id, "figures")] == [
        "figures/a.png"
    ]
    [copy] = output.glob(f"mlartifacts/{tracker.run_id}/artifacts/copies/deep/report.md")
    assert copy.read_text() == "text"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.md"]


@pytest.mark.parametrize("cut", [False, True])
def test_the_student_is_a_model_that_mlflow_loads_and_serves(
    output: Path, make_spec: Callable[..., StudentSpec], monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    spec = make_spec("plain", {"conv1": 4, "conv2": 6}, widths=[4, 6])
    if cut:  # a cut network with batch norms, and an adapter that cannot be folded
        network = make_spec("ka_ray.teachers.plain:plain_conv_net", {}, num_classes=4, widths=[4, 6])
        spec = replace(network, paths={"first": "norm1", "second": "act2"})
    student = Student(spec).train()
    with open_tracker(CONFIG, "run", output, None) as tracker:
        tracker.log_student(student)
    assert student.training, "the caller's student was changed"
    assert make_client(output).get_run(tracker.run_id).info.status == "FINISHED"

    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracker.tracking_uri))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    model = mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/student")
    monkeypatch.undo()
    pixels = np.random.default_rng(1).integers(0, 256, (5, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = student.eval()(torch.tensor(pixels)).numpy()
    for images in (1, 5):
        np.testing.assert_allclose(model.predict(pixels[:images]), expected[:images], atol=1e-4)
    assert model.metadata.metadata == {
        "classes": [f"class_{i}" for i in range(4)],
        "decoding": spec.decoding,
        "preprocessing": spec.preprocessing,
    }
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3, 8, 8)
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 4)
    assert model.metadata.flavors["python_function"]["config"]["device"] == "cpu"  # else it fails on GPUs
    assert model.metadata.run_id == tracker.run_id
    torch_pin = f"torch=={torch.__version__.split('+')[0]}"
    requirements = next(
        output.glob(f"mlartifacts/models/{model.metadata.model_id}/artifacts/requirements.txt")
    )
    assert torch_pin in requirements.read_text().split()


def test_one_photo_has_the_same_scores_through_every_door(
    output: Path, make_spec: Callable[..., StudentSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A phone's photo, by predict, by the MLflow model and by a plain torchvision transform."""
    preprocessing = {
        "resize": "shorter", "size": 20, "crop": 16, "interpolation": "bicubic", "channel_order": "bgr",
        "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4],
    }  # fmt: skip
    full = Preprocessing.model_validate(preprocessing).model_dump(mode="json")
    decoding = Decoding(exif_orientation=True).model_dump(mode="json")
    spec = make_spec("plain", {"conv1": 4, "conv2": 6}, widths=[4, 6])
    student = Student(replace(spec, preprocessing=full, decoding=decoding)).eval()
    save_student(student, tmp_path)
    image = Image.fromarray(np.random.default_rng(2).integers(0, 256, (37, 61, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "photo.png", exif=exif)

    upright = ImageOps.exif_transpose(Image.open(tmp_path / "photo.png"))
    steps = [
        tv.Resize(20, tv.InterpolationMode.BICUBIC), tv.CenterCrop(16), tv.ToTensor(),
        tv.Lambda(lambda pixels: pixels.flip(0)), tv.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)),
    ]  # fmt: skip
    features = tv.Compose(steps)(upright)[None]
    with torch.no_grad():
        for stage in student.stages.values():
            features = stage(features)
    expected = features[0].numpy()

    [prediction] = predict(tmp_path, [tmp_path / "photo.png"])
    assert prediction.class_name == f"class_{expected.argmax()}"
    assert prediction.probability == pytest.approx(float(features.softmax(dim=1).max()), abs=1e-5)

    with open_tracker(CONFIG, "run", output, None) as tracker:
        tracker.log_student(load_student(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tracker.tracking_uri))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    model = mlflow.pyfunc.load_model(f"runs:/{tracker.run_id}/student")
    monkeypatch.undo()
    # What a server that has only the MLflow model does with the file.
    rules = model.metadata.metadata
    decoded = decode_image((tmp_path / "photo.png").read_bytes(), Decoding.model_validate(rules["decoding"]))
    view = view_of(Preprocessing.model_validate(rules["preprocessing"]))
    scores = model.predict(view.apply(decoded)[None].astype(np.float32))
    np.testing.assert_allclose(scores[0], expected, atol=1e-5)


def test_a_resumed_run_has_the_same_id_and_keeps_its_params(output: Path) -> None:
    with open_tracker(CONFIG, "run", output, None) as first:
        first.log_params({"same": 1, "changed": 1})
    with open_tracker(CONFIG, "run", output, first.run_id) as resumed:
        assert resumed.run_id == first.run_id
        assert make_client(output).get_run(resumed.run_id).info.status == "RUNNING"
        resumed.log_params({"same": 1, "changed": 2, "new": 3})
    run = make_client(output).get_run(first.run_id)
    assert run.data.params == {"same": "1", "changed": "1", "new": "3"}
    assert run.data.tags["resumed.changed"] == "2"
    assert run.info.status == "FINISHED"


def test_a_deleted_run_is_started_as_a_new_one(output: Path) -> None:
    with open_tracker(CONFIG, "run", output, None) as first:
        pass
    make_client(output).delete_run(first.run_id)
    for missing_id in (first.run_id, "0" * 32):
        with open_tracker(CONFIG, "run", output, missing_id) as tracker:
            assert tracker.run_id not in (missing_id, None)


def test_a_child_is_a_separate_run_nested_under_its_parent(output: Path) -> None:
    with open_tracker(CONFIG, "parent", output, None) as parent:
        children = {name: parent.child(name, None) for name in ("direct", "distill")}
        for value, child in enumerate(children.values()):
            child.log_params({"codes.method": child.run_id})
            child.log_metrics({"joint/loss": value}, step=3)
            child.finish(failed=False)
        parent.log_metrics({"joint/loss": 7.0})
    runs = {name: make_client(output).get_run(child.run_id) for name, child in children.items()}
    assert len({parent.run_id, *(child.run_id for child in children.values())}) == 3
    for value, (name, run) in enumerate(runs.items()):
        assert run.data.tags["mlflow.parentRunId"] == parent.run_id
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert run.data.params == {"codes.method": children[name].run_id}
        assert run.data.metrics == {"joint/loss": value}
        assert children[name].tracking_uri == parent.tracking_uri
    own = make_client(output).get_run(parent.run_id)
    assert (own.data.params, own.data.metrics) == ({}, {"joint/loss": 7.0})
    assert "mlflow.parentRunId" not in own.data.tags
    assert {run.info.experiment_id for run in runs.values()} == {own.info.experiment_id}


def test_a_child_of_a_resumed_run_is_resumed(output: Path) -> None:
    with open_tracker(CONFIG, "parent", output, None) as first:
        child = first.child("direct", None)
        child.log_metrics({"joint/loss": 1.0}, step=1)
        child.finish(failed=True)
    assert make_client(output).get_run(child.run_id).info.status == "FAILED"
    with open_tracker(CONFIG, "parent", output, first.run_id) as second:
        resumed_child = second.child("direct", child.run_id)
        assert resumed_child.run_id == child.run_id
        assert make_client(output).get_run(child.run_id).info.status == "RUNNING"
        resumed_child.log_metrics({"joint/loss": 0.5}, step=2)
        resumed_child.finish(failed=False)
        other = second.child("direct", "0" * 32)  # a run that does not exist is started as a new one
        assert other.run_id not in (child.run_id, "0" * 32)
        other.finish(failed=False)
    found = make_client(output).get_metric_history(child.run_id, "joint/loss")
    assert [(metric.step, metric.value) for metric in found] == [(1, 1.0), (2, 0.5)]
    run = make_client(output).get_run(child.run_id)
    assert (run.info.status, run.data.tags["mlflow.parentRunId"]) == ("FINISHED", first.run_id)


def test_a_child_can_be_logged_to_after_its_parent_ended(output: Path) -> None:
    with open_tracker(CONFIG, "parent", output, None) as parent:
        child = parent.child("direct", None)
    statuses = [make_client(output).get_run(tracker.run_id).info.status for tracker in (parent, child)]
    assert statuses == ["FINISHED", "RUNNING"]
    child.log_metrics({"evaluate/union": 0.5})
    child.finish(failed=False)
    run = make_client(output).get_run(child.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"evaluate/union": 0.5})


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_exception_marks_the_run_as_failed_and_is_raised(output: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), open_tracker(CONFIG, "run", output, None) as tracker:
        raise error
    assert make_client(output).get_run(tracker.run_id).info.status == "FAILED"


def test_the_configured_uri_and_experiment_are_used(output: Path) -> None:
    uri = f"sqlite:///{output / 'mlflow.db'}"
    config = TrackingConfig(uri=uri, experiment="mine")
    with open_tracker(config, "run", output / "unused", None) as tracker:
        assert tracker.tracking_uri == uri
    experiment = make_client(output).get_experiment_by_name("mine")
    assert make_client(output).get_run(tracker.run_id).info.experiment_id == experiment.experiment_id
    assert not (output / "unused").exists()

    make_client(output).delete_experiment(experiment.experiment_id)
    with (
        pytest.raises(InputError, match=r"tracking\.experiment: 'mine' was deleted"),
        open_tracker(config, "run", output, None),
    ):
        pass


def test_the_environments_uri_is_used_if_none_is_configured(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{output / 'mlflow.db'}"
    configured = "sqlite:////elsewhere.db"
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        with open_tracker(TrackingConfig(), "run", output / "unused", None) as tracker:
            assert tracker.tracking_uri == uri
        assert not (output / "unused").exists()
        assert tracking_uri(TrackingConfig(uri=configured), output) == configured
        assert tracking_uri(TrackingConfig(backend="none"), output) is None
        patch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@server:5000")
        with pytest.raises(InputError, match="credentials in the URI") as error:
            tracking_uri(TrackingConfig(), output)
    assert "s3cret" not in str(error.value)


def test_remote_files_and_folders_become_artifacts(output: Path, tmp_path: Path, s3: str) -> None:
    run = to_path(f"{s3}/run")
    for name in ("report.md", "figures/a.png", "figures/b.png"):
        write_text(run / name, name)
    config = TrackingConfig(uri=f"sqlite:///{output / 'mlflow.db'}")
    with open_tracker(config, "run", run, None) as tracker:
        tracker.log_artifact(run / "report.md")
        tracker.log_artifact(run / "figures")
    assert {a.path for a in make_client(output).list_artifacts(tracker.run_id)} == {"report.md", "figures"}
    listed = make_client(output).list_artifacts(tracker.run_id, "figures")
    assert {a.path for a in listed} == {"figures/a.png", "figures/b.png"}
    downloaded = make_client(output).download_artifacts(tracker.run_id, "figures/b.png", str(tmp_path))
    assert Path(downloaded).read_text() == "figures/b.png"


def test_the_null_tracker_accepts_all_calls_and_writes_nothing(
    tmp_path: Path, make_spec: Callable[..., StudentSpec]
) -> None:
    with open_tracker(TrackingConfig(backend="none"), "run", tmp_path, None) as tracker:
        assert isinstance(tracker, NullTracker)
        tracker.log_params({"a": 1})
        tracker.log_metrics({"a/b": 1.0}, step=1)
        tracker.log_artifact(tmp_path)
        tracker.log_student(Student(make_spec("plain", {"conv1": 4}, widths=[4])))
        child = tracker.child("direct", "f" * 32)
        assert isinstance(child, NullTracker)
        child.log_metrics({"a/b": 1.0})
        child.finish(failed=False)
    assert (tracker.tracking_uri, tracker.run_id) == (None, None)
    assert (child.tracking_uri, child.run_id) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_every_backend_of_the_config_has_a_tracker() -> None:
    field: Any = TrackingConfig.model_fields["backend"].annotation
    assert set(TRACKERS) == set(field.__args__)


def test_importing_tracking_imports_no_mlflow() -> None:
    code = "import sys, ka_ray.tracking; print([m for m in ('mlflow', 'torch', 'ray') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("uri", "link"),
    [
        ("http://host:5000", "http://host:5000/#/experiments/7/runs/abc?workflowType=machine_learning"),
        (
            "https://host/mlflow/",
            "https://host/mlflow/#/experiments/7/runs/abc?workflowType=machine_learning",
        ),
        ("sqlite:////tmp/mlflow.db", None),
        ("file:///tmp/mlruns", None),
    ],
)
def test_only_a_run_on_a_server_has_a_link(uri: str, link: str | None) -> None:
    from types import SimpleNamespace

    from ka_ray.tracking.mlflow import MlflowTracker

    tracker = MlflowTracker.__new__(MlflowTracker)
    tracker._set_run(uri, SimpleNamespace(info=SimpleNamespace(run_id="abc", experiment_id="7")))
    assert tracker.link == link


def test_the_null_tracker_has_no_link() -> None:
    assert NullTracker().link is None
