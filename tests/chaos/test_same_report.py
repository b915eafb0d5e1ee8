"""`cluster/local.sh up 3` and `ray job submit`: the report of the same run on one node, whoever ran where."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BIN, PATIENCE_S, ROOT, LocalCluster, clean_environment, submit

from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

TEACHER, TRAINER = r"ray::MapWorker\(MapBatches\(TeacherActor\)", r"ray::.*RayTrainWorker|ray::execute"

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
TEACHERS = [ROOT / "runs" / f"cifar10_teacher_{name}" / name / "teacher.safetensors" for name in "ab"]

GROUPS = ("teachers", "trainers", "decoding")
"""Worker 1, 2 and 3 are labelled with these."""

PLACEMENT = [f"placement.{group}.label.group={group}" for group in GROUPS] + ["placement.teachers.gpu=1"]

TOLERANCE = {"digits": 0.015, "cifar10_halves_exact": 0.005}
"""Of every accuracy: the same steps, but floats summed in another order. Of 359 digits five may differ."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without work, three workers with a label and two logical GPUs each, and an MLflow server."""
    folder = Path("/tmp") / f"ka_ray_same_{os.getpid()}"
    labels = ";".join(f"group={group}" for group in GROUPS)
    settings = {"KA_RAY_OBJECT_STORE_MB": "512", "KA_RAY_LABELS": labels, "KA_RAY_GPUS": "2"}
    made = LocalCluster(folder, 27000, settings)
    try:
        made.call("up", "3")
        yield made
    finally:
        made.call("down")
        shutil.rmtree(folder, ignore_errors=True)


def options(name: str) -> list[str]:
    if name == "digits":
        return []
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10} is not here")
    if not all(path.exists() for path in TEACHERS):
        pytest.skip("no teachers: ka-ray teach jobs/configs/cifar10_teacher_a.yaml, and the same for b")
    places = [f"images.path={CIFAR10}", f"evaluation.images.path={CIFAR10}"]
    return [
        *places,
        *(f"teachers.{i}.checkpoint={path}" for i, path in enumerate(TEACHERS)),
        "joint.epochs=1",
    ]


@pytest.mark.parametrize("name", TOLERANCE)
def test_three_nodes_report_what_one_reports(cluster, tmp_path, name):
    config = f"jobs/configs/{name}.yaml"
    given = [config, *(f"--set={option}" for option in options(name)), "--output"]
    alone = subprocess.run(
        [str(BIN / "ka-ray"), "run", *given, str(tmp_path / "one"), "--set=tracking.backend=none"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert alone.returncode == 0, alone.stdout[-2000:] + alone.stderr[-2000:]
    placed = [f"--set={option}" for option in PLACEMENT]
    job = submit(cluster, tmp_path / "log", "amalgamate.py", *given, str(tmp_path / "three"), *placed)
    nodes = {title: set[int]() for title in (TEACHER, TRAINER)}
    ends = time.monotonic() + 2 * PATIENCE_S
    while job.process.poll() is None and time.monotonic() < ends:
        for title, seen in nodes.items():
            seen.update(cluster.processes(title).values())
        time.sleep(2)
    assert job.wait() == 0, job.text[-4000:]
    assert nodes == {TEACHER: {1}, TRAINER: {2}}

    one, three = Report.load(tmp_path / "one"), Report.load(tmp_path / "three")
    assert three.ray.nodes == 4
    extracting = [place.gpus for place in three.placements]
    assert extracting[:2] in ([[0], [1]], [[1], [0]]), "each teacher has a GPU of its own"
    assert three.mlflow.tracking_uri == cluster.environment["MLFLOW_TRACKING_URI"]
    assert f"mlflow: {three.mlflow.tracking_uri}/#/experiments/" in job.text
    assert three.size == one.size
    assert three.accuracy.images == one.accuracy.images
    pairs = {"union": (one.accuracy.union, three.accuracy.union)}
    pairs["ensemble"] = (one.accuracy.ensemble, three.accuracy.ensemble)
    for teacher, pair in one.accuracy.per_teacher.items():
        pairs[teacher] = (pair.student, three.accuracy.per_teacher[teacher].student)
    print(name, {key: f"{a:.4f} on one node, {b:.4f} on three" for key, (a, b) in pairs.items()})
    for key, (expected, found) in pairs.items():
        assert found == pytest.approx(expected, abs=TOLERANCE[name]), key


def test_a_wrong_token_is_one_clear_message(cluster, tmp_path):
    stranger = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 40}
    command = [str(BIN / "ka-ray"), "run", "jobs/configs/digits.yaml", "--output", str(tmp_path / "out")]
    for address, words in (("127.0.0.2:27000", "refuses this shell's token"), (None, "asks for a token")):
        submitted = ["submit", command[2], "--address", cluster.environment["RAY_ADDRESS"], *command[3:]]
        done = subprocess.run(
            command if address else [command[0], *submitted],
            cwd=ROOT,
            env=clean_environment() | stranger | ({"RAY_ADDRESS": address} if address else {}),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert words in line
        assert "f" * 40 not in done.stdout + done.stderr
