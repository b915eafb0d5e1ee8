"""Kill a worker, a node or the driver in each of six stages: no work is lost and none is done twice."""

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from harness import DIGITS, JOB_TIMEOUT_S, ROOT, Job, LocalCluster, kill, submit, wait_until
from safetensors.numpy import load_file

from ka_ray.features.shard_recovery import read_image_ids
from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

NUM_TRAIN_IMAGES, NUM_TEST_IMAGES = 1438, 359
"""Number of images of the digits from which the student learns, and on which it is evaluated."""

TABLE = ROOT / "runs" / "kills.md"
"""File of the table of all kills, which is also printed at the end."""

FINAL_FILES = ("student.*", "report.*", "figures")
"""What a run writes after its last stage."""

TRIALS = 8
"""Number of trials of the stage ``tune``."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head that runs no tasks and three workers with two CPUs each, with token authentication."""
    folder = Path("/tmp") / f"ka_ray_chaos_{os.getpid()}"  # the path of a socket must be short
    started = LocalCluster(folder, port=26000, settings={"KA_RAY_MLFLOW": "off"})
    try:
        started.call("up", "3")
        yield started
    finally:
        started.call("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def full_cluster(cluster: LocalCluster) -> LocalCluster:
    """The same cluster with all three workers: those that a test has killed are replaced."""
    for _ in range(3 - len(cluster.alive)):
        cluster.call("add")
    return cluster


@pytest.fixture(scope="session")
def reference_run(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run in which nothing is killed."""
    folder = tmp_path_factory.mktemp("reference_run")
    job = submit(cluster, folder / "log", "amalgamate.py", *DIGITS, "--output", str(folder / "out"))
    assert job.wait() == 0, job.text[-3000:]
    return folder / "out"


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The rows of the table of all kills, which is printed at the end."""
    rows: list[str] = []
    yield rows
    columns = ("stage", "SIGKILL", "outcome", "rows lost", "rows doubled", "finished stages repeated")
    head = f"| {' | '.join((*columns, 'epochs repeated', 'seconds'))} |"
    text = "\n".join([head, "|---" * 8 + "|", *rows, ""])
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(text)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}also in {TABLE.relative_to(ROOT)}")


@dataclass(frozen=True)
class Stage:
    """A stage in which something is killed.

    Attributes:
        removed: Patterns of what is removed from a finished run, so that it resumes at this stage.
        first_output: Pattern of a file that exists as soon as the stage has written something.
        title: Regular expression that matches the command lines of the stage's worker processes.
        script: Name of the script in `jobs/` that runs the stage.
        options: Additional arguments of the script.
    """

    removed: Sequence[str]
    first_output: str
    title: str
    script: str = "amalgamate.py"
    options: Sequence[str] = ()


# The title of a training worker depends on what it is doing.
TRAINER = r"ray::.*RayTrainWorker|ray::execute"
STAGES = {
    "extraction": Stage(("features", "images", "stages"), "features/*.arrow", r"MapBatches\(TeacherActor\)"),
    "codes": Stage(("stages",), "stages/codes*.epoch", TRAINER),
    "layers": Stage(("stages/[lje]*",), "stages/layers.epoch", TRAINER),
    "joint": Stage(("stages/[je]*",), "stages/joint.epoch", TRAINER),
    "evaluation": Stage(("stages/e*",), "stages/joint.json", r"MapBatches\(EvaluatorActor\)"),
    "tune": Stage(
        (),
        "trials/*/trial.json",
        r"ray::.*(ImplicitFunc|_in_trial|train\b)",
        "search_widths.py",
        (
            "--set",
            f"tune.trials={TRIALS}",
            "--set",
            "tune.max_concurrent=2",
        ),
    ),
}


def copy_run_before_stage(stage: Stage, reference_run: Path, folder: Path) -> None:
    """Copy a finished run, and remove what the given stage and all later ones have written."""
    shutil.copytree(reference_run, folder)
    for pattern in (*stage.removed, *FINAL_FILES):
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def find_finished(folder: Path) -> dict[str, int]:
    """Return a dict: file that marks a stage or a trial as finished -> time of writing, in nanoseconds."""
    marks = [p for g in ("stages/*.json", "*/done.json", "trials/*/trial.json") for p in folder.glob(g)]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in marks}


def kill_worker(cluster: LocalCluster, stage: Stage, job: Job) -> None:
    kill(min(cluster.processes(stage.title)))


def kill_node(cluster: LocalCluster, stage: Stage, job: Job) -> None:
    cluster.call("kill", str(min(cluster.processes(stage.title).values())))


def kill_driver(cluster: LocalCluster, stage: Stage, job: Job) -> None:
    drivers = cluster.processes(rf"^python jobs/{stage.script}")
    assert len(drivers) == 1
    kill(min(drivers))


KILLS: dict[str, Callable[[LocalCluster, Stage, Job], None]] = {
    "worker": kill_worker,
    "node": kill_node,
    "driver": kill_driver,
}


def is_running(cluster: LocalCluster, stage: Stage, folder: Path) -> bool:
    return any(folder.glob(stage.first_output)) and bool(cluster.processes(stage.title))


@pytest.mark.parametrize("victim", KILLS)
@pytest.mark.parametrize("name", STAGES)
def test_a_kill_loses_no_work_and_repeats_none(full_cluster, reference_run, tmp_path, table, name, victim):
    stage, folder, began = STAGES[name], tmp_path / "out", time.monotonic()
    copy_run_before_stage(stage, reference_run, folder)
    job_arguments = (stage.script, *DIGITS, *stage.options, "--output", str(folder))
    # `ready` is also true if the job has ended too early: the test then fails at once.
    jobs = [submit(full_cluster, tmp_path / "log1", *job_arguments)]
    ready = lambda: is_running(full_cluster, stage, folder) or jobs[0].process.poll() is not None  # noqa: E731
    wait_until(ready, JOB_TIMEOUT_S, f"{name} does not begin:\n{jobs[0].text[-2000:]}")
    assert jobs[0].process.poll() is None, jobs[0].text[-3000:]
    finished_before = find_finished(folder)
    KILLS[victim](full_cluster, stage, jobs[0])
    code, outcome = jobs[0].wait(), "survived"
    if victim == "driver":
        assert code != 0, "a job must fail if its driver was killed"
        jobs.append(submit(full_cluster, tmp_path / "log2", *job_arguments))
        code, outcome = jobs[1].wait(), "resumed"
    assert code == 0, jobs[-1].text[-4000:]

    # Every image must be in exactly one shard.
    ids = np.concatenate([read_image_ids(shard) for shard in (folder / "features").glob("*.arrow")])
    lost, doubled = NUM_TRAIN_IMAGES - len(np.unique(ids)), len(ids) - len(np.unique(ids))
    now = find_finished(folder)
    repeated = sum(now.get(mark) != stamp for mark, stamp in finished_before.items())
    epochs = re.findall(r"^(\w+) epoch=(\d+)/", "\n".join(job.text for job in jobs), re.MULTILINE)
    epochs_repeated = sum(count - 1 for count in Counter(epochs).values())
    seconds = time.monotonic() - began
    cells = (name, victim, outcome, lost, doubled, repeated, epochs_repeated, f"{seconds:.0f}")
    table.append(f"| {' | '.join(map(str, cells))} |")
    assert (lost, doubled, repeated) == (0, 0, 0)
    assert epochs_repeated <= 1, "at most the epoch that was running is repeated"
    if name == "tune":
        trials = [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]
        assert len(trials) == TRIALS
        assert not [t for t in trials if json.loads((folder / "tune.json").read_text())["failed"]]
    else:
        assert_same_result(folder, reference_run)


def test_after_the_loss_of_the_head_the_same_command_resumes_on_a_new_cluster(
    full_cluster, reference_run, tmp_path, table
):
    stage, folder, began = STAGES["extraction"], tmp_path / "out", time.monotonic()
    copy_run_before_stage(stage, reference_run, folder)
    job_arguments = (stage.script, *DIGITS, "--output", str(folder))
    first_job = submit(full_cluster, tmp_path / "log1", *job_arguments)
    ready = lambda: is_running(full_cluster, stage, folder) or first_job.process.poll() is not None  # noqa: E731
    wait_until(ready, JOB_TIMEOUT_S, f"the extraction does not begin:\n{first_job.text[-2000:]}")
    finished_before = find_finished(folder)
    full_cluster.call("kill", "0")
    assert first_job.wait() != 0
    stamps = {shard: shard.stat().st_mtime_ns for shard in folder.glob("features/*.arrow")}
    assert stamps
    full_cluster.call("down")
    full_cluster.call("up", "3")
    job = submit(full_cluster, tmp_path / "log2", *job_arguments)
    assert job.wait() == 0, job.text[-4000:]
    assert {shard: shard.stat().st_mtime_ns for shard in stamps} == stamps
    ids = np.concatenate([read_image_ids(shard) for shard in folder.glob("features/*.arrow")])
    assert len(ids) == len(np.unique(ids)) == NUM_TRAIN_IMAGES
    now, seconds = find_finished(folder), time.monotonic() - began
    repeated = sum(now.get(mark) != stamp for mark, stamp in finished_before.items())
    table.append(f"| extraction | head | resumed | 0 | 0 | {repeated} | - | {seconds:.0f} |")
    assert repeated == 0
    assert_same_result(folder, reference_run)


def assert_same_result(folder: Path, reference_run: Path) -> None:
    """Check that weights and accuracy differ from those of the reference run only by rounding."""
    weights, expected = (
        load_file(folder / "student.safetensors"),
        load_file(reference_run / "student.safetensors"),
    )
    assert weights.keys() == expected.keys()
    for tensor in weights:
        np.testing.assert_allclose(weights[tensor], expected[tensor], rtol=2e-2, atol=2e-2, err_msg=tensor)
    accuracy, reference = Report.load(folder).accuracy, Report.load(reference_run).accuracy
    assert accuracy.images == reference.images == NUM_TEST_IMAGES
    assert accuracy.union == pytest.approx(reference.union, abs=0.01)
