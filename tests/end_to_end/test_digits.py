"""The digits run is killed and resumed; then its output folder is used as by a user."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import ka_ray
from ka_ray.config import Config
from ka_ray.reports.report import Report
from ka_ray.reports.verdict import judge

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore:.*noload.*")]

REPOSITORY = Path(__file__).parents[2]
DIGITS = REPOSITORY / "jobs" / "configs" / "digits.yaml"
LAYERWISE = (
    "codes={solver: sgd, epochs: 20}",
    "layers={epochs: 10, batch_size: 32, learning_rate: 0.01}",
    "joint={epochs: 10, batch_size: 32, learning_rate: 0.002}",
)
"""With these sections the student starts from random weights and learns layer by layer."""

TIMEOUT_S = 600


def start_ka_ray(*arguments: str, cwd: Path = REPOSITORY) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ka_ray.cli", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until a file exists; fail if the process that should write it ends first."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} does not exist after {TIMEOUT_S} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the digits, kill the driver with SIGKILL during the layer stage, and run the same command again.

    The first driver trains by itself, the second in a group of workers, which may change.
    """
    folder = tmp_path_factory.mktemp("digits") / "run"
    overrides = [word for override in LAYERWISE for word in ("--set", override)]
    arguments = ("run", str(DIGITS), "--output", str(folder), *overrides)
    first = start_ka_ray(*arguments)
    wait_for(folder / "stages" / "codes.json", first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (folder / "stages" / "layers.json").exists()
    extracted = {path: path.stat().st_mtime_ns for path in (folder / "features").iterdir()}
    second = start_ka_ray(*arguments, "--set", "ray.workers=1")
    output = second.communicate(timeout=TIMEOUT_S)[0]
    assert second.returncode == 0, output
    return folder, extracted, output


def test_the_second_attempt_resumes_after_the_last_finished_stage(run):
    folder, extracted, output = run
    assert {path: path.stat().st_mtime_ns for path in (folder / "features").iterdir()} == extracted
    assert "extract" not in output
    assert "teach_" not in output
    assert "learning layers, joint: starting 1 worker" in output


def test_the_report_is_complete_and_the_student_nearly_as_good_as_its_teachers(run):
    folder, _, output = run
    report = Report.load(folder)
    content = json.loads((folder / "report.json").read_text())
    assert content["classes"] == [f"digit_{i}" for i in range(10)]
    assert set(content["stages"]) == {"extract", "codes", "layers", "joint", "evaluate"}
    assert set(content["codes"]) == {"conv1", "conv2", "conv3"}
    assert set(content["layers"]) == {"conv1", "conv2", "conv3", "scores"}
    assert report.accuracy.labelled == report.accuracy.images == 359
    assert report.accuracy.union >= 0.95 * report.accuracy.ensemble
    for pair in report.accuracy.per_teacher.values():
        assert pair.student >= 0.98 * pair.teacher
    assert report.size.student.parameters <= 1.02 * report.size.per_teacher["low"].parameters
    for code in report.codes.values():
        # If the stacked features span fewer directions than the code has channels, the optimum is 0.
        assert code.relative_error <= max(1.05 * code.optimal_relative_error, 3e-4)
    assert "digits: 10 classes" in output
    shown = output.replace("\n         ", " ")  # long lines are wrapped
    assert f"verdict: {judge(report.accuracy).sentence}" in shown
    page = (folder / "report.html").read_text()
    assert f"report:  {folder / 'report.html'}" in output
    # Losses, reconstruction and confusion; the accuracies are drawn in their table.
    assert page.count('<img src="data:image/png;base64,') == 3
    assert report.origin is not None
    assert yaml.safe_load(report.origin.config) == json.loads((folder / "config.json").read_text())
    assert report.teacher_classes["high"] == [f"digit_{i}" for i in range(5, 10)]
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"accuracy.png", "losses.png", "reconstruction.png", "confusion.png"}


def test_one_mlflow_run_has_parameters_metrics_artifacts_and_the_model(run, monkeypatch):
    import mlflow

    folder, _, _ = run
    report = Report.load(folder)
    client = mlflow.MlflowClient(report.mlflow.tracking_uri)
    tracked = client.get_run(report.mlflow.run_id)
    assert tracked.info.status == "FINISHED"
    assert len(client.search_runs([tracked.info.experiment_id])) == 1
    assert tracked.data.params["joint.epochs"] == "10"
    assert tracked.data.metrics["evaluate/union"] == pytest.approx(report.accuracy.union)
    assert len(client.get_metric_history(report.mlflow.run_id, "joint/loss")) == 10
    assert {"report.json", "report.md", "report.html", "figures"} <= {
        a.path for a in client.list_artifacts(tracked.info.run_id)
    }

    # Not mlflow.set_tracking_uri, which would still be set in the next test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(report.mlflow.tracking_uri))
    model = mlflow.pyfunc.load_model(f"runs:/{report.mlflow.run_id}/student")
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        expected = ka_ray.load_student(folder)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(model.predict(images), expected, atol=1e-4)


def test_a_changed_config_is_refused_with_the_changed_keys(run):
    folder, _, _ = run
    config = Config.load(DIGITS, [f"output={folder}", *LAYERWISE, "joint.epochs=3", "ray.workers=1"])
    with pytest.raises(ka_ray.InputError) as error:
        ka_ray.amalgamate(config)
    assert "joint.epochs: 10 there, 3 now" in str(error.value)
    assert "ray.workers" not in str(error.value)


def test_predict_and_evaluate_need_only_the_files_of_the_student(run, tmp_path):
    from sklearn.datasets import load_digits

    folder, _, _ = run
    copied_folder = tmp_path / "copied"
    copied_folder.mkdir()
    for name in ("student.json", "student.safetensors"):
        (copied_folder / name).write_bytes((folder / name).read_bytes())
    digits = load_digits()
    paths = []
    for row in range(4, 104, 5):  # every fifth image belongs to the test split
        paths.append(tmp_path / f"digit_{digits.target[row]}" / f"{row}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(np.round(digits.images[row] * 255 / 16).astype(np.uint8)).save(paths[-1])
    predictions = ka_ray.predict(copied_folder, paths)
    correct = sum(p.class_name == path.parent.name for p, path in zip(predictions, paths, strict=True))
    assert correct >= 17
    assert all(0 < prediction.probability <= 1 for prediction in predictions)

    process = start_ka_ray("evaluate", str(copied_folder), "--images", "digits")
    output = process.communicate(timeout=TIMEOUT_S)[0]
    union = Report.load(folder).accuracy.union
    assert f"union {100 * union:.1f} % on 359 labelled images" in output
    assert process.returncode == 0
