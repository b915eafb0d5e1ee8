"""A cluster of two hosts with their own addresses runs the digits, and a third host joins during the run."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BIN, JOB_TIMEOUT_S, ROOT, clean_environment, wait_until

from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

NETWORK, BRIDGE, GCS_PORT, DASHBOARD_PORT = "10.77.13", "ka_ray_br", 6379, 8265


def run_shell(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, command + done.stderr


class Host:
    """A network namespace with its own address, connected to the others by a bridge.

    Args:
        number: Number of the host, from 1; also the last part of its address.
        folder: Folder in which a folder for the logs of the host and for Ray's files is created.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = f"ka_ray_{number}", f"{NETWORK}.{number}"
        self.folder, self.number = folder / str(number), number
        self.processes: list[subprocess.Popen[str]] = []
        self.folder.mkdir(parents=True)
        run_shell(f"ip netns add {self.name}")
        run_shell(f"ip link add kav{number} type veth peer name eth0 netns {self.name}")
        run_shell(f"ip link set kav{number} master {BRIDGE} up")
        run_shell(f"ip -n {self.name} addr add {self.address}/24 dev eth0")
        run_shell(f"ip -n {self.name} link set eth0 up && ip -n {self.name} link set lo up")

    def start(self, log: str, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Start a command on this host.

        Args:
            log: Name of the file for its output, in the folder of the host.
            command: The command and its arguments.
            environment: Additional environment variables.
        """
        variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 40, "GLOO_SOCKET_IFNAME": "eth0"}
        # Keep idle worker processes, as `cluster/local.sh` does: a new one needs seconds to import torch.
        variables |= {
            "RAY_idle_worker_killing_time_threshold_ms": "600000",
            "RAY_num_workers_soft_limit": "16",
        }
        with (self.folder / log).open("w") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=ROOT,
                env=clean_environment() | variables | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )
        self.processes.append(process)
        return process

    def join(self, *options: str) -> None:
        """Start Ray on this host; ``options`` are additional options of `ray start`."""
        common = ["--block", f"--node-ip-address={self.address}", "--num-cpus=2", "--disable-usage-stats"]
        store = [f"--temp-dir={self.folder}/ray", f"--object-store-memory={256 * 1024**2}"]
        self.start("ray.log", str(BIN / "ray"), "start", *common, *store, *options)

    def end(self) -> None:
        """Kill all processes of the host and remove it."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        subprocess.run(["kill", "-9", *listed.stdout.split()], capture_output=True)
        for process in self.processes:
            process.wait()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        subprocess.run(["ip", "link", "del", f"kav{self.number}"], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts; a test may append more, which are removed, too."""
    if os.geteuid() or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("creating network namespaces is not permitted here")
    folder = Path(f"/tmp/ka_ray_hosts_{os.getpid()}")
    created: list[Host] = []
    run_shell(f"ip link add {BRIDGE} type bridge && ip link set {BRIDGE} up")
    try:
        created += [Host(1, folder), Host(2, folder)]
        yield created
    finally:
        for host in created:
            host.end()
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_hosts_run_the_digits_and_a_third_joins_during_the_run(hosts, tmp_path):
    head, second = hosts
    head.join(
        "--head", f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}", "--dashboard-host=127.0.0.1"
    )

    def has_nodes(num_nodes: int) -> bool:
        arguments = f"'{head.address}:{GCS_PORT}', logging_level=50"
        code = f"import ray; ray.init({arguments}); print('NODES', len(ray.nodes()))"
        query = head.start("nodes.log", str(BIN / "python"), "-c", code)
        return query.wait() == 0 and f"NODES {num_nodes}" in (head.folder / "nodes.log").read_text()

    wait_until(lambda: has_nodes(1), 300, "the head does not answer")
    second.join(f"--address={head.address}:{GCS_PORT}")
    wait_until(lambda: has_nodes(2), 300, "the second host does not join")

    out, log = tmp_path / "out", head.folder / "job.log"
    # A training worker needs both CPUs of a host, so a third worker can start only when a third host joins.
    options = ["ray.workers={min: 2, max: 3}", "placement.trainers.cpu=2", "placement.teachers.cpu=1"]
    options += ["joint.epochs=80", "tracking.backend=none"]
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}"]
    command += ["--working-dir", ".", "--", "python", "jobs/amalgamate.py", "jobs/configs/digits.yaml"]
    job = head.start("job.log", *command, "--output", str(out), *(f"--set={option}" for option in options))
    joint_began = lambda: "joint epoch=2/" in log.read_text() or job.poll() is not None  # noqa: E731
    wait_until(joint_began, JOB_TIMEOUT_S, "joint learning does not begin")
    assert job.poll() is None, log.read_text()[-3000:]
    hosts.append(Host(3, head.folder.parent))
    hosts[2].join(f"--address={head.address}:{GCS_PORT}")
    assert job.wait(2 * JOB_TIMEOUT_S) == 0, log.read_text()[-3000:]

    text = log.read_text()
    assert re.findall(r"a group of (\d) workers has begun", text)[-2:] == ["2", "3"]
    report = Report.load(out)
    assert report.accuracy.images == 359  # all test images of the digits
    assert report.accuracy.union >= 0.97 * report.accuracy.ensemble
