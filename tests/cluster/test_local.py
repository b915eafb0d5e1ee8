"""`cluster/local.sh`: nodes that are added, stopped and killed; jobs with the token and without it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/local.sh"
RAY = str(Path(sys.executable).parent / "ray")
OTHER_CLUSTER = {
    "RAY_ADDRESS": "127.0.0.1:1",
    "RAY_AUTH_TOKEN": "f" * 64,
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
}


@dataclass(frozen=True)
class Local:
    """The script with its own folder and ports, called from a shell whose variables name another cluster.

    Attributes:
        folder: The cluster's folder.
        settings: Environment variables of the script.
    """

    folder: Path
    settings: dict[str, str]

    def __call__(self, *arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | OTHER_CLUSTER | self.settings | settings
        return subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=environment | {"PATH": path, "KA_RAY_CLUSTER_DIR": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=400,
        )

    def output_of(self, *arguments: str, **settings: str) -> str:
        done = self(*arguments, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Return the variables of a shell after ``eval "$(cluster/local.sh env)"``."""
        script = f'set -e; eval "{self.output_of("env")}"; env -0'
        environment = os.environ | OTHER_CLUSTER
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=True)
        return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)

    def alive(self) -> list[str]:
        lines = (line.split() for line in self.output_of("status").splitlines())
        return [words[0] for words in lines if words[1:2] == ["ALIVE"]]

    def processes(self, node: str = "") -> set[int]:
        """Return the processes whose command or environment names the folder of the cluster or one node."""
        wanted = (str(self.folder / node) if node else str(self.folder)).encode()
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if wanted in text and int(process.name) != os.getpid():
                found.add(int(process.name))
        return found


def free_base() -> int:
    """Return a port that is free, and so is the next one."""
    for base in range(25000, 32000, 1000):
        with socket.socket() as one, socket.socket() as other:
            if one.connect_ex(("127.0.0.1", base)) and other.connect_ex(("127.0.0.1", base + 1)):
                return base
    raise AssertionError("no free ports")


@pytest.fixture
def local() -> Iterator[Local]:
    # The paths of pytest's own folders are too long for sockets.
    folder = Path(tempfile.mkdtemp(prefix="ka_ray_", dir="/tmp"))
    script = Local(folder, {"KA_RAY_PORT": str(free_base()), "KA_RAY_CPUS": "1"})
    yield script
    script.output_of("down")
    assert script.processes() == set()
    shutil.rmtree(folder)


def ray(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RAY, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def submit(environment: dict[str, str], code: str) -> "subprocess.CompletedProcess[str]":
    return ray(environment, "job", "submit", "--", "python", "-c", code)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, "no command"),
        (["start"], {}, "start: not one of up"),
        (["up"], {}, "up takes 1 arguments, not 0"),
        (["up", "two"], {}, "up N: two is no whole number"),
        (["up", "0"], {}, "up N: 0 is no whole number of at least 1"),
        (["kill"], {}, "kill takes 1 arguments"),
        (["kill", "-1"], {}, "kill K: -1"),
        (["down", "now"], {}, "down takes 0 arguments"),
        (["up", "1"], {"KA_RAY_AUTH": "none"}, "KA_RAY_AUTH: none is neither token nor off"),
        (["up", "1"], {"KA_RAY_MLFLOW": "yes"}, "KA_RAY_MLFLOW: yes is neither on nor off"),
        (["up", "1"], {"KA_RAY_CPUS": "0.5"}, "KA_RAY_CPUS: 0.5"),
        (["up", "1"], {"KA_RAY_PORT": "80"}, "KA_RAY_PORT: 80"),
    ],
)
def test_wrong_arguments_are_refused_with_their_name(arguments, settings, message, tmp_path):
    done = Local(tmp_path, {})(*arguments, **settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["env"], ["status"], ["add"], ["kill", "1"]])
def test_commands_that_need_a_cluster_fail_without_one(command, tmp_path):
    done = Local(tmp_path, {})(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert "runs" in done.stderr


def test_down_without_a_cluster_succeeds(tmp_path):
    assert Local(tmp_path / "never", {})("down").returncode == 0


def test_help_names_every_setting(tmp_path):
    text = Local(tmp_path, {}).output_of("--help")
    settings = set(re.findall(r"\bKA_RAY_[A-Z_]+", SCRIPT.read_text())) - {
        "KA_RAY_LOCAL_CLUSTER",
        "KA_RAY_LOCAL_NODE",
    }
    assert settings >= {"KA_RAY_PORT", "KA_RAY_LABELS"}
    assert {name for name in settings if name not in text} == set()


def test_a_folder_path_that_is_too_long_for_sockets_is_refused(tmp_path):
    done = Local(tmp_path / ("x" * 60), {})("up", "1")
    assert done.returncode == 1
    assert "too long for Ray's sockets" in done.stderr


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    done = Local(tmp_path / "link", {})("up", "1")
    assert done.returncode == 1
    assert "no folder of yours" in done.stderr


def test_a_port_that_is_in_use_is_named(tmp_path):
    with socket.socket() as listener, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = Local(Path(folder), {"KA_RAY_PORT": port})("up", "1")
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_runs_jobs_changes_its_nodes_and_refuses_wrong_tokens(local):
    assert "up; dashboard" in local.output_of("up", "2", KA_RAY_LABELS="group=teachers;group=trainers")
    assert set(local.alive()) == {"node0", "node1", "node2"}
    assert local("up", "1").returncode == 1  # already up
    token = local.folder / "token"
    assert (local.folder.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)

    shell = local.environment()
    assert "RAY_AUTH_TOKEN" not in shell
    asked = "ray.cluster_resources()['CPU'], os.environ['MLFLOW_TRACKING_URI'], sys.executable"
    done = submit(shell, f"import os, ray, sys; ray.init(); print('job:', {asked})")
    assert done.returncode == 0, done.stdout + done.stderr
    # Two workers of one CPU, none at the head; the job's python is the one whose ray was started.
    assert f"job: 2.0 {shell['MLFLOW_TRACKING_URI']} {sys.executable}" in done.stdout
    for stranger in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit(shell | stranger, "print(1)")
        assert refused.returncode != 0, refused.stdout
    with urllib.request.urlopen(shell["MLFLOW_TRACKING_URI"] + "/health", timeout=10) as answer:
        assert answer.status == 200

    assert local.processes("node1")
    local.output_of("kill", "1")
    assert local.processes("node1") == set()
    assert local.processes("node2")
    assert local("kill", "1").returncode == 1  # it does not run any more
    wait_until_alive(local, {"node0", "node2"})
    assert local.output_of("add", KA_RAY_CPUS="3", KA_RAY_GPUS="1").strip() == "3"
    wait_until_alive(local, {"node0", "node2", "node3"})
    assert "CPU=3 GPU=1 group=teachers" in local.output_of("status")
    assert submit(shell, "import ray; ray.init()").returncode == 0

    local.output_of("down")
    assert local.processes() == set()
    assert not token.exists()
    assert (local.folder / "mlflow/mlflow.db").exists()


def wait_until_alive(local: Local, nodes: set[str]) -> None:
    """Wait until only these nodes are alive; Ray takes a node for dead after several failed health checks."""
    deadline = time.monotonic() + 90
    while set(local.alive()) != nodes:
        assert time.monotonic() < deadline, local.output_of("status")
        time.sleep(1)


@pytest.mark.ray
@pytest.mark.slow
def test_down_ends_processes_of_jobs_and_authentication_can_be_off(local):
    local.output_of("up", "1", KA_RAY_AUTH="off", KA_RAY_MLFLOW="off")
    assert not (local.folder / "token").exists()
    shell = local.environment()
    assert shell["RAY_AUTH_MODE"] == "disabled"
    stray = "import subprocess; print('pid', subprocess.Popen(['sleep', '900'], start_new_session=True).pid)"
    done = submit(shell | {"RAY_AUTH_TOKEN": "f" * 64}, stray)  # any token is accepted, and none is needed
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"^pid (\d+)", done.stdout, re.MULTILINE)[0]) in local.processes()
    with urllib.request.urlopen(shell["RAY_ADDRESS"] + "/api/jobs/", timeout=10) as answer:
        assert answer.status == 200
    local.output_of("down")
    assert local.processes() == set()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(shell["RAY_ADDRESS"], timeout=10)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_does_not_start_shows_its_log_and_leaves_no_process(local):
    done = local("up", "1", KA_RAY_LABELS="no label")
    assert done.returncode == 1
    assert "node1 ended" in done.stderr
    assert "--labels" in done.stderr
    assert local.processes() == set()
