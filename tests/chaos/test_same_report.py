"""A run on three nodes of `cluster/local.sh` has the same report as on one node."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BIN, JOB_TIMEOUT_S, ROOT, LocalCluster, clean_environment, submit

from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

TEACHER, TRAINER = r"ray::MapWorker\(MapBatches\(TeacherActor\)", r"ray::.*RayTrainWorker|ray::execute"

CIFAR10 = ROOT.parent / "shared" / "data" / "cifar10"
TEACHERS = [ROOT / "runs" / f"cifar10_teacher_{name}" / name / "teacher.safetensors" for name in "ab"]

GROUPS = ("teachers", "trainers", "decoding")
"""Values of the label `group` of workers 1, 2 and 3."""

PLACEMENT = [f"placement.{group}.label.group={group}" for group in GROUPS] + ["placement.teachers.gpu=1"]

TOLERANCE = {"digits": 0.015, "cifar10_halves_exact": 0.005}
"""Maximum difference of an accuracy. The training steps are the same, but sums are computed in another order.

Of the 359 digits, five may be classified differently.
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head without tasks, three workers with a label and two logical GPUs each, and an MLflow server."""
    folder = Path("/tmp") / f"ka_ray_same_{os.getpid()}"
    labels = ";".join(f"group={group}" for group in GROUPS)
    settings = {"KA_RAY_OBJECT_STORE_MB": "512", "KA_RAY_LABELS": labels, "KA_RAY_GPUS": "2"}
    started = LocalCluster(folder, 27000, settings)
    try:
        started.call("up", "3")
        yield started
    finally:
        started.call("down")
        shutil.rmtree(folder, ignore_errors=True)


def list_overrides(name: str) -> list[str]:
    """Return the overrides of a config; skip the test if its images or teachers are missing."""
    if name == "digits":
        return []
    if not CIFAR10.exists():
        pytest.skip(f"{CIFAR10} does not exist")
    if not all(path.exists() for path in TEACHERS):
        pytest.skip(
            "the teachers are missing: run ka-ray teach with jobs/configs/cifar10_teacher_a.yaml and _b.yaml"
        )
    paths = [f"images.path={CIFAR10}", f"evaluation.images.path={CIFAR10}"]
    return [
        *paths,
        *(f"teachers.{i}.checkpoint={path}" for i, path in enumerate(TEACHERS)),
        "joint.epochs=1",
    ]


@pytest.mark.parametrize("name", TOLERANCE)
def test_three_nodes_report_the_same_results_as_one_node(cluster, tmp_path, name):
    config = f"jobs/configs/{name}.yaml"
    command = [config, *(f"--set={option}" for option in list_overrides(name)), "--output"]
    local = subprocess.run(
        [str(BIN / "ka-ray"), "run", *command, str(tmp_path / "one"), "--set=tracking.backend=none"],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=2 * JOB_TIMEOUT_S,
    )
    assert local.returncode == 0, local.stdout[-2000:] + local.stderr[-2000:]
    placement_options = [f"--set={option}" for option in PLACEMENT]
    job = submit(
        cluster, tmp_path / "log", "amalgamate.py", *command, str(tmp_path / "three"), *placement_options
    )
    nodes = {title: set[int]() for title in (TEACHER, TRAINER)}
    deadline = time.monotonic() + 2 * JOB_TIMEOUT_S
    while job.process.poll() is None and time.monotonic() < deadline:
        for title, seen in nodes.items():
            seen.update(cluster.processes(title).values())
        time.sleep(2)
    assert job.wait() == 0, job.text[-4000:]
    assert nodes == {TEACHER: {1}, TRAINER: {2}}

    one, three = Report.load(tmp_path / "one"), Report.load(tmp_path / "three")
    assert three.ray.nodes == 4  # the head and three workers
    teacher_gpus = [placement.gpus for placement in three.placements]
    assert teacher_gpus[:2] in ([[0], [1]], [[1], [0]]), "each teacher has its own GPU"
    assert three.mlflow.tracking_uri == cluster.environment["MLFLOW_TRACKING_URI"]
    assert f"mlflow: {three.mlflow.tracking_uri}/#/experiments/" in job.text
    assert three.size == one.size
    assert three.accuracy.images == one.accuracy.images
    pairs = {"union": (one.accuracy.union, three.accuracy.union)}
    pairs["ensemble"] = (one.accuracy.ensemble, three.accuracy.ensemble)
    for teacher, pair in one.accuracy.per_teacher.items():
        pairs[teacher] = (pair.student, three.accuracy.per_teacher[teacher].student)
    print(name, {key: f"{a:.4f} on one node, {b:.4f} on three" for key, (a, b) in pairs.items()})
    for key, (expected, value) in pairs.items():
        assert value == pytest.approx(expected, abs=TOLERANCE[name]), key


def test_a_wrong_token_ends_with_one_clear_message(cluster, tmp_path):
    wrong_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 40}
    command = [str(BIN / "ka-ray"), "run", "jobs/configs/digits.yaml", "--output", str(tmp_path / "out")]
    # With an address of the GCS: `ka-ray run`; with None: `ka-ray submit` to the dashboard.
    for address in ("127.0.0.2:27000", None):
        submitted = ["submit", command[2], "--address", cluster.environment["RAY_ADDRESS"], *command[3:]]
        done = subprocess.run(
            command if address else [command[0], *submitted],
            cwd=ROOT,
            env=clean_environment() | wrong_token | ({"RAY_ADDRESS": address} if address else {}),
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "asks for a token, and this shell has none or a wrong one" in line
        assert "f" * 40 not in done.stdout + done.stderr
