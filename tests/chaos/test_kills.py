"""Six stages, in each of which a worker, a node or the driver is killed: nothing is lost or done twice."""

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
from harness import DIGITS, PATIENCE_S, ROOT, Job, LocalCluster, kill, submit, wait_until
from safetensors.numpy import load_file

from ka_ray.features.shard_recovery import read_image_ids
from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

NUM_TRAINED, NUM_JUDGED = 1438, 359
"""Images of the digits that are learned from, and that are judged on."""

TABLE = ROOT / "runs" / "kills.md"

ALL_LATER = ("student.*", "report.*", "figures")
TRIALS = 8


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without work and three workers of two CPUs, with token authentication."""
    folder = Path("/tmp") / f"ka_ray_chaos_{os.getpid()}"  # sockets need short names
    made = LocalCluster(folder, 26000, {"KA_RAY_MLFLOW": "off"})
    try:
        made.call("up", "3")
        yield made
    finally:
        made.call("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def whole(cluster: LocalCluster) -> LocalCluster:
    """The same with all three workers: those that a test killed are replaced."""
    for _ in range(3 - len(cluster.alive)):
        cluster.call("add")
    return cluster


@pytest.fixture(scope="session")
def undisturbed(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run in which nothing is killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = submit(cluster, folder / "log", "amalgamate.py", *DIGITS, "--output", str(folder / "out"))
    assert job.wait() == 0, job.text[-3000:]
    return folder / "out"


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines of the table, which is shown at the end."""
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
    """A stage that is disturbed.

    Attributes:
        redo: What of an undisturbed run's folder is taken away, so that this stage comes first.
        begun: What there is in the folder when the stage has begun to leave something.
        title: Of the processes that do its work.
        script: Of `jobs/`.
        options: For it.
    """

    redo: Sequence[str]
    begun: str
    title: str
    script: str = "amalgamate.py"
    options: Sequence[str] = ()


TRAINER = r"ray::.*RayTrainWorker|ray::execute"
STAGES = {
    "extraction": Stage(("features", "images", "stages"), "features/*.arrow", r"MapBatches\(TeacherActor\)"),
    "codes": Stage(("stages",), "stages/codes*.epoch", TRAINER),
    "layers": Stage(("stages/[lje]*",), "stages/layers.epoch", TRAINER),
    "joint": Stage(("stages/[je]*",), "stages/joint.epoch", TRAINER),
    "evaluation": Stage(("stages/e*",), "stages/joint.json", r"MapBatches\(Judge\)"),
    "sweep": Stage(
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


def prepare(stage: Stage, undisturbed: Path, folder: Path) -> None:
    """Copy an undisturbed run up to a stage."""
    shutil.copytree(undisturbed, folder)
    for pattern in (*stage.redo, *ALL_LATER):
        for path in list(folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def finished(folder: Path) -> dict[str, int]:
    """The files that say of a stage, or of a trial, that it stands, and when they were written."""
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


def at_work(cluster: LocalCluster, stage: Stage, folder: Path) -> bool:
    return any(folder.glob(stage.begun)) and bool(cluster.processes(stage.title))


@pytest.mark.parametrize("what", KILLS)
@pytest.mark.parametrize("name", STAGES)
def test_nothing_is_lost_and_nothing_done_twice(whole, undisturbed, tmp_path, table, name, what):
    stage, folder, began = STAGES[name], tmp_path / "out", time.monotonic()
    prepare(stage, undisturbed, folder)
    call = (stage.script, *DIGITS, *stage.options, "--output", str(folder))
    jobs = [submit(whole, tmp_path / "log1", *call)]
    ready = lambda: at_work(whole, stage, folder) or jobs[0].process.poll() is not None  # noqa: E731
    wait_until(ready, PATIENCE_S, f"{name} does not begin:\n{jobs[0].text[-2000:]}")
    assert jobs[0].process.poll() is None, jobs[0].text[-3000:]
    stood = finished(folder)
    KILLS[what](whole, stage, jobs[0])
    code, outcome = jobs[0].wait(), "survived"
    if what == "driver":
        assert code != 0, "a job whose driver was killed is no success"
        jobs.append(submit(whole, tmp_path / "log2", *call))
        code, outcome = jobs[1].wait(), "resumed"
    assert code == 0, jobs[-1].text[-4000:]

    ids = np.concatenate([read_image_ids(shard) for shard in (folder / "features").glob("*.arrow")])
    lost, doubled = NUM_TRAINED - len(np.unique(ids)), len(ids) - len(np.unique(ids))
    now = finished(folder)
    repeated = sum(now.get(mark) != stamp for mark, stamp in stood.items())
    epochs = re.findall(r"^(\w+) epoch=(\d+)/", "\n".join(job.text for job in jobs), re.MULTILINE)
    again = sum(count - 1 for count in Counter(epochs).values())
    seconds = time.monotonic() - began
    table.append(
        f"| {name} | {what} | {outcome} | {lost} | {doubled} | {repeated} | {again} | {seconds:.0f} |"
    )
    assert (lost, doubled, repeated) == (0, 0, 0)
    assert again <= 1, "of a stage at most the epoch that was running is repeated"
    if name == "sweep":
        trials = [json.loads(path.read_text()) for path in folder.glob("trials/*/trial.json")]
        assert len(trials) == TRIALS
        assert not [t for t in trials if json.loads((folder / "tune.json").read_text())["failed"]]
    else:
        same_result(folder, undisturbed)


def test_a_lost_head_takes_the_cluster_along_and_the_same_command_goes_on_with_the_next(
    whole, undisturbed, tmp_path, table
):
    stage, folder, began = STAGES["extraction"], tmp_path / "out", time.monotonic()
    prepare(stage, undisturbed, folder)
    call = (stage.script, *DIGITS, "--output", str(folder))
    lost = submit(whole, tmp_path / "log1", *call)
    ready = lambda: at_work(whole, stage, folder) or lost.process.poll() is not None  # noqa: E731
    wait_until(ready, PATIENCE_S, f"no extraction:\n{lost.text[-2000:]}")
    stood = finished(folder)
    whole.call("kill", "0")
    assert lost.wait() != 0
    stamps = {shard: shard.stat().st_mtime_ns for shard in folder.glob("features/*.arrow")}
    assert stamps
    whole.call("down")
    whole.call("up", "3")
    job = submit(whole, tmp_path / "log2", *call)
    assert job.wait() == 0, job.text[-4000:]
    assert {shard: shard.stat().st_mtime_ns for shard in stamps} == stamps
    ids = np.concatenate([read_image_ids(shard) for shard in folder.glob("features/*.arrow")])
    assert len(ids) == len(np.unique(ids)) == NUM_TRAINED
    now, seconds = finished(folder), time.monotonic() - began
    repeated = sum(now.get(mark) != stamp for mark, stamp in stood.items())
    table.append(f"| extraction | head | resumed | 0 | 0 | {repeated} | - | {seconds:.0f} |")
    assert repeated == 0
    same_result(folder, undisturbed)


def same_result(folder: Path, undisturbed: Path) -> None:
    """The same steps were taken: the weights differ by rounding alone, and so does what is judged."""
    found, expected = (
        load_file(folder / "student.safetensors"),
        load_file(undisturbed / "student.safetensors"),
    )
    assert found.keys() == expected.keys()
    for tensor in found:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=2e-2, atol=2e-2, err_msg=tensor)
    accuracy, whole = Report.load(folder).accuracy, Report.load(undisturbed).accuracy
    assert accuracy.images == whole.images == NUM_JUDGED
    assert accuracy.union == pytest.approx(whole.union, abs=0.01)
