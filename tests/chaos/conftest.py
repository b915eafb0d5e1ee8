"""One cluster, one undisturbed run to compare with, and the table that the killing leaves."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import LocalCluster, submit

DIGITS = ("jobs/configs/digits.yaml", "--set", "extract.shard_mib=2", "--set", "tracking.backend=none")
ROWS: list[str] = []


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head without work and three workers of two CPUs, with token authentication."""
    folder = Path("/tmp") / f"ka_ray_chaos_{tmp_path_factory.getbasetemp().name}"  # sockets need short names
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
def table() -> list[str]:
    """Lines of the table, printed at the end."""
    return ROWS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ROWS:
        columns = ("stage", "SIGKILL", "outcome", "rows lost", "rows doubled", "finished stages repeated")
        head = f"| {' | '.join((*columns, 'epochs repeated', 'seconds'))} |"
        terminalreporter.write_line("")
        for line in (head, "|---" * 8 + "|", *ROWS):
            terminalreporter.write_line(line)
