"""`cluster/local.sh`: starting, adding and killing nodes, and jobs with and without the token."""

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
# The script must ignore these settings of another cluster.
OTHER_CLUSTER = {
    "RAY_ADDRESS": "127.0.0.1:1",
    "RAY_AUTH_TOKEN": "f" * 64,
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:1",
}


@dataclass(frozen=True)
class LocalScript:
    """The script with its own folder and ports, called from a shell that is set up for another cluster.

    Attributes:
        folder: Folder of the cluster.
        settings: Environment variables for every call.
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

    def run(self, *arguments: str, **settings: str) -> str:
        """Call the script, fail if it fails, and return its output."""
        done = self(*arguments, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Return the environment of a shell after ``eval "$(cluster/local.sh env)"``."""
        script = f'set -e; eval "{self.run("env")}"; env -0'
        before = os.environ | OTHER_CLUSTER
        done = subprocess.run(["bash", "-c", script], env=before, capture_output=True, check=True)
        return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)

    def alive(self) -> list[str]:
        """Return the names of the nodes that Ray reports as alive."""
        lines = (line.split() for line in self.run("status").splitlines())
        return [columns[0] for columns in lines if columns[1:2] == ["ALIVE"]]

    def processes(self, node: str = "") -> set[int]:
        """Return the processes whose command line or environment names the cluster, or one node of it."""
        name = (str(self.folder / node) if node else str(self.folder)).encode()
        found = set()
        for process in Path("/proc").glob("[0-9]*"):
            try:
                text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            except OSError:
                continue
            if name in text and int(process.name) != os.getpid():
                found.add(int(process.name))
        return found


def find_free_port_pair() -> int:
    """Return a port that is free and whose successor is free, too."""
    for base in range(25000, 32000, 1000):
        with socket.socket() as one, socket.socket() as other:
            if one.connect_ex(("127.0.0.1", base)) and other.connect_ex(("127.0.0.1", base + 1)):
                return base
    raise AssertionError("no free ports")


@pytest.fixture
def local() -> Iterator[LocalScript]:
    """The script with a new folder; at the end, the cluster is stopped and no process may be left."""
    folder = Path(tempfile.mkdtemp(prefix="ka_ray_", dir="/tmp"))  # pytest's tmp_path is too long for sockets
    script = LocalScript(folder, {"KA_RAY_PORT": str(find_free_port_pair()), "KA_RAY_CPUS": "1"})
    yield script
    script.run("down")
    assert script.processes() == set()
    shutil.rmtree(folder)


def run_ray(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([RAY, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def submit_code(environment: dict[str, str], code: str) -> "subprocess.CompletedProcess[str]":
    return run_ray(environment, "job", "submit", "--", "python", "-c", code)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([], {}, "no command given"),
        (["start"], {}, "start: the command must be up, env, status, add, kill or down"),
        (["up"], {}, "up takes 1 argument(s), but 0 were given"),
        (["up", "two"], {}, "up N: two is not a whole number of at least 1"),
        (["up", "0"], {}, "up N: 0 is not a whole number of at least 1"),
        (["kill"], {}, "kill takes 1 argument(s), but 0 were given"),
        (["kill", "-1"], {}, "kill K: -1 is not a whole number of at least 0"),
        (["down", "now"], {}, "down takes 0 argument(s), but 1 were given"),
        (["up", "1"], {"KA_RAY_AUTH": "none"}, "KA_RAY_AUTH: none is neither token nor off"),
        (["up", "1"], {"KA_RAY_MLFLOW": "yes"}, "KA_RAY_MLFLOW: yes is neither on nor off"),
        (["up", "1"], {"KA_RAY_CPUS": "0.5"}, "KA_RAY_CPUS: 0.5 is not a whole number of at least 1"),
        (["up", "1"], {"KA_RAY_PORT": "80"}, "KA_RAY_PORT: 80 is not a whole number of at least 1024"),
    ],
)
def test_wrong_arguments_are_named_and_refused(arguments, settings, message, tmp_path):
    done = LocalScript(tmp_path, {})(*arguments, **settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["env"], "no cluster runs in"),
        (["status"], "no cluster runs in"),
        (["add"], "no cluster runs in"),
        (["kill", "1"], "node1 does not run"),
    ],
)
def test_commands_that_need_a_cluster_fail_without_one(command, message, tmp_path):
    done = LocalScript(tmp_path, {})(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_down_without_a_cluster_succeeds(tmp_path):
    assert LocalScript(tmp_path / "missing", {})("down").returncode == 0


def test_help_explains_every_setting(tmp_path):
    text = LocalScript(tmp_path, {}).run("--help")
    # The script sets the two removed variables itself.
    settings = set(re.findall(r"\bKA_RAY_[A-Z_]+", SCRIPT.read_text())) - {
        "KA_RAY_LOCAL_CLUSTER",
        "KA_RAY_LOCAL_NODE",
    }
    assert settings >= {"KA_RAY_PORT", "KA_RAY_LABELS"}
    assert {name for name in settings if name not in text} == set()


def test_a_folder_that_is_too_long_for_sockets_is_refused(tmp_path):
    done = LocalScript(tmp_path / ("x" * 60), {})("up", "1")
    assert done.returncode == 1
    assert "characters too long for Ray's sockets; set KA_RAY_CLUSTER_DIR" in done.stderr


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    done = LocalScript(tmp_path / "link", {})("up", "1")
    assert done.returncode == 1
    assert "is not a folder that belongs to you; set KA_RAY_CLUSTER_DIR" in done.stderr


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """An empty folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def list_tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("command", [["up", "1"], ["down"]])
def test_a_folder_with_somebody_elses_files_is_left_as_it_is(short_folder, command):
    """A project has such names, too; `settings` alone does not say that the script has made them."""
    for name in ("node_modules/left-pad/index.js", "logs/today.log", "token", "settings"):
        (short_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (short_folder / name).write_text("precious")
    short_folder.chmod(0o755)
    before = list_tree(short_folder)
    done = LocalScript(short_folder, {})(*command)
    assert list_tree(short_folder) == before
    assert short_folder.stat().st_mode & 0o777 == 0o755
    if command == ["down"]:  # there is no cluster to end
        assert done.returncode == 0
        return
    assert done.returncode == 1
    assert f"{short_folder} holds files that this script did not make" in done.stderr
    assert "set KA_RAY_CLUSTER_DIR to a new or empty folder" in done.stderr


def test_settings_that_link_elsewhere_do_not_make_a_folder_ours(short_folder, tmp_path):
    (tmp_path / "settings").write_text("KA_RAY_PORT=24000\n")
    (short_folder / "settings").symlink_to(tmp_path / "settings")
    done = LocalScript(short_folder, {})("up", "1")
    assert (done.returncode, list_tree(short_folder)) == (1, {"settings"})
    assert "holds files that this script did not make" in done.stderr


def test_up_deletes_only_what_an_earlier_up_has_made(short_folder):
    """Python fails to start a node here, so that `up` ends at once: it has cleaned the folder before."""
    (short_folder / "settings").write_text("KA_RAY_PORT=24000\n")
    for name in ("node0/old", "node12/old", "node_modules/index.js", "mlflow/mlflow.db", "logs/node0.log"):
        (short_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (short_folder / name).write_text("")
    bin_folder = short_folder / "mlflow" / "bin"  # programs that end at once
    bin_folder.mkdir()
    for program in ("python", "ray", "mlflow"):
        script = f"#!/bin/sh\n[ {program} = python ] && echo {bin_folder} || exit 1\n"
        (bin_folder / program).write_text(script)
        (bin_folder / program).chmod(0o755)
    environment = {**os.environ, "KA_RAY_CLUSTER_DIR": str(short_folder), "KA_RAY_TIMEOUT": "5"}
    environment |= {"PATH": f"{bin_folder}:/usr/bin:/bin", "KA_RAY_PORT": str(find_free_port_pair())}
    command = ["bash", str(SCRIPT), "up", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1, done.stdout + done.stderr
    left = list_tree(short_folder)
    assert {"node_modules/index.js", "mlflow/mlflow.db"} <= left
    assert not {"node0/old", "node12", "node12/old"} & left
    assert short_folder.stat().st_mode & 0o777 == 0o700


def test_a_port_in_use_is_named(tmp_path):
    with socket.socket() as listener, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = LocalScript(Path(folder), {"KA_RAY_PORT": port})("up", "1")
    assert done.returncode == 1
    assert f"port {port} is in use by another program; set KA_RAY_PORT" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_run_jobs_and_can_be_added_and_killed_and_a_wrong_token_is_refused(local):
    assert "up; dashboard" in local.run("up", "2", KA_RAY_LABELS="group=teachers;group=trainers")
    assert set(local.alive()) == {"node0", "node1", "node2"}
    assert local("up", "1").returncode == 1  # already up
    token = local.folder / "token"
    assert (local.folder.stat().st_mode & 0o777, token.stat().st_mode & 0o777) == (0o700, 0o600)

    shell = local.environment()
    assert "RAY_AUTH_TOKEN" not in shell
    values = "ray.cluster_resources()['CPU'], os.environ['MLFLOW_TRACKING_URI'], sys.executable"
    done = submit_code(shell, f"import os, ray, sys; ray.init(); print('values', {values})")
    assert done.returncode == 0, done.stdout + done.stderr
    # Two workers with one CPU each, none on the head. The job runs with the python whose ray was started.
    assert f"values 2.0 {shell['MLFLOW_TRACKING_URI']} {sys.executable}" in done.stdout
    for wrong in ({"RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit_code(shell | wrong, "print(1)")
        assert refused.returncode != 0, refused.stdout
    with urllib.request.urlopen(shell["MLFLOW_TRACKING_URI"] + "/health", timeout=10) as answer:
        assert answer.status == 200

    assert local.processes("node1")
    local.run("kill", "1")
    assert local.processes("node1") == set()
    assert local.processes("node2")
    assert local("kill", "1").returncode == 1  # node 1 is dead already
    wait_until_alive(local, {"node0", "node2"})
    assert local.run("add", KA_RAY_CPUS="3", KA_RAY_GPUS="1").strip() == "3"
    wait_until_alive(local, {"node0", "node2", "node3"})
    assert "CPU=3 GPU=1 group=teachers" in local.run("status")
    assert submit_code(shell, "import ray; ray.init()").returncode == 0

    local.run("down")
    assert local.processes() == set()
    assert not token.exists()
    assert (local.folder / "mlflow/mlflow.db").exists()


def wait_until_alive(local: LocalScript, nodes: set[str]) -> None:
    """Wait until exactly these nodes are alive: Ray declares a node dead only after several health checks."""
    deadline = time.monotonic() + 90
    while set(local.alive()) != nodes:
        assert time.monotonic() < deadline, local.run("status")
        time.sleep(1)


@pytest.mark.ray
@pytest.mark.slow
def test_down_ends_processes_that_a_job_has_left_and_authentication_can_be_off(local):
    local.run("up", "1", KA_RAY_AUTH="off", KA_RAY_MLFLOW="off")
    assert not (local.folder / "token").exists()
    shell = local.environment()
    assert shell["RAY_AUTH_MODE"] == "disabled"
    code_with_child = (
        "import subprocess; print('pid', subprocess.Popen(['sleep', '900'], start_new_session=True).pid)"
    )
    # Without authentication any token is accepted.
    done = submit_code(shell | {"RAY_AUTH_TOKEN": "f" * 64}, code_with_child)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"^pid (\d+)", done.stdout, re.MULTILINE)[0]) in local.processes()
    with urllib.request.urlopen(shell["RAY_ADDRESS"] + "/api/jobs/", timeout=10) as answer:
        assert answer.status == 200
    local.run("down")
    assert local.processes() == set()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(shell["RAY_ADDRESS"], timeout=10)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_fails_to_start_shows_its_log_and_leaves_no_process(local):
    done = local("up", "1", KA_RAY_LABELS="no label")
    assert done.returncode == 1
    assert "node1 ended during its start; its log is above" in done.stderr
    assert "--labels" in done.stderr
    assert local.processes() == set()
