"""Test MLflow's pages of a run in a browser, its server for models, and the code of docs/mlflow.md."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from report_kinds import make_report

from ka_ray.config import Preprocessing, TrackingConfig
from ka_ray.reports.card import describe_run, write_card
from ka_ray.reports.figures import draw_loss_curves
from ka_ray.student import Student, StudentSpec
from ka_ray.tracking import open_tracker
from ka_ray.tracking.pages import VIEW
from ka_ray.tracking.records import StudentVersion, TrackedImages
from ka_ray.workflows.browse import serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PAGE = Path(__file__).parents[2] / "docs" / "mlflow.md"
SIZE = 16

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def tracked(project: Path) -> tuple[str, Student]:
    """Track a run in `runs/demo`; return its id and its student."""
    folder = project / "runs" / "demo"
    pixels = Preprocessing(resize="squash", size=SIZE, crop=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    spec = StudentSpec(
        network="plain",
        arguments={"widths": [4]},
        paths={"conv1": "conv1"},
        widths={"conv1": 4},
        label_sets={"low": ("zero", "one"), "high": ("two", "three")},
        rule="mean",
        preprocessing=pixels.model_dump(mode="json"),
        decoding={},
    )
    student, report = Student(spec).eval(), make_report("started").model_copy(update={"name": "digits"})
    [losses] = draw_loss_curves({"joint": [{"images": 1, "losses": {"loss": 1.0}}]}, project / "figures")
    with open_tracker(TrackingConfig(), "digits", folder, None) as tracker:
        tracker.log_metrics({"evaluate/union": 0.75})
        tracker.log_images(TrackedImages("training", "photos", "/data/photos", "d" * 32, 20))
        tracker.describe(describe_run(report))
        tracker.log_tags({"verdict": "better", "start": "exact"})
        tracker.log_artifact(losses, "figures")
        tracker.log_student(student)
        card = write_card(report, "squash to 16 pixels")
        tracker.register_student(StudentVersion("digits", card, "union", 0.75, "d"), lambda told: None)
    assert tracker.run_id is not None
    return tracker.run_id, student


@pytest.fixture(scope="module")
def server(project: Path, tracked: tuple[str, Student]) -> Iterator[str]:
    with serve(project / "runs" / "demo", find_free_port()) as (address, _):
        yield address


@pytest.fixture
def read_page(server: str, tmp_path: Path) -> Callable[[str], str]:
    """Return a function that opens a page of the server and returns its elements, once they are drawn."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")

    def read(place: str, *expected: str) -> str:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1600"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000"]
        url = f"{server}/#{place}"
        done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=300)
        picture = tmp_path / f"{re.sub(r'[^a-z]+', '_', place.lower()).strip('_')}.png"
        subprocess.run(
            [*command, f"--screenshot={picture}", url], capture_output=True, timeout=300, check=True
        )
        missing = [text for text in expected if text not in done.stdout]
        assert not missing, f"{place} lacks {missing}; {picture} shows it"
        return done.stdout

    return read


def test_the_page_of_the_run_begins_with_the_verdict(
    tracked: tuple[str, Student], read_page: Callable[..., str]
) -> None:
    place = f"/experiments/1/runs/{tracked[0]}{VIEW}"
    read_page(place, "The student is", "accuracy on images of", "photos", "verdict", "better", "digits")


def test_the_table_of_runs_shows_the_run(read_page: Callable[..., str]) -> None:
    read_page(f"/experiments/1/runs{VIEW}", "digits", "photos")


def test_a_figure_is_shown(tracked: tuple[str, Student], read_page: Callable[..., str], server: str) -> None:
    shown = read_page(f"/experiments/1/runs/{tracked[0]}/artifacts/figures/losses.png", "losses.png")
    assert re.search(r'<img[^>]+src="(blob:|data:|[^"]*losses)', shown)


def test_the_page_of_the_model_shows_version_champion_and_card(read_page: Callable[..., str]) -> None:
    read_page(f"/models/digits{VIEW}", "Version 1", "champion")
    read_page(f"/models/digits/versions/1{VIEW}", "How it was made", "squash to 16 pixels")


def test_the_code_of_the_page_loads_and_serves_the_student(
    project: Path,
    tracked: tuple[str, Student],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(project)
    load, request = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    [command] = re.findall(r"^(mlflow models serve .*)$", PAGE.read_text(), re.MULTILINE)
    black = torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = tracked[1](black)[0]
    subprocess.run([sys.executable, "-c", load], check=True)  # it changes MLflow's state: its own process
    assert capfd.readouterr().out.split() == [tracked[1].spec.classes[int(expected.argmax())]]
    port = find_free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/demo/mlflow.db")
    # As `source .venv/bin/activate` does: MLflow looks for its web server there.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    served = subprocess.Popen(
        [sys.executable, "-m", *command.replace("5001", str(port)).split()], start_new_session=True
    )
    try:
        for _ in range(600):
            assert served.poll() is None
            try:
                if requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok:
                    break
            except requests.RequestException:
                time.sleep(0.2)
        exec(request.replace("5001", str(port)), {})
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(served.pid, signal.SIGTERM)
        served.wait(timeout=30)
    [scores] = eval(capfd.readouterr().out.splitlines()[-1])
    np.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
