"""Two hosts with addresses of their own form a cluster and finish the digits run; a third joins half-way."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import BIN, PATIENCE_S, ROOT, clean_environment, wait_until

from ka_ray.reports.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.chaos]

NETWORK, BRIDGE, GCS, DASHBOARD = "10.77.13", "ka_ray_br", 6379, 8265


def sh(command: str) -> None:
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, command + done.stderr


class Host:
    """A network namespace with an address of its own, behind a bridge."""

    def __init__(self, number: int, folder: Path) -> None:
        self.name, self.address = f"ka_ray_{number}", f"{NETWORK}.{number}"
        self.folder, self.number = folder / str(number), number
        self.processes: list[subprocess.Popen[str]] = []
        self.folder.mkdir(parents=True)
        sh(f"ip netns add {self.name}")
        sh(f"ip link add kav{number} type veth peer name eth0 netns {self.name}")
        sh(f"ip link set kav{number} master {BRIDGE} up")
        sh(f"ip -n {self.name} addr add {self.address}/24 dev eth0")
        sh(f"ip -n {self.name} link set eth0 up && ip -n {self.name} link set lo up")

    def start(self, log: str, *command: str, **environment: str) -> "subprocess.Popen[str]":
        """Run a command as if logged in on this host."""
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 40, "GLOO_SOCKET_IFNAME": "eth0"}
        own |= {"RAY_idle_worker_killing_time_threshold_ms": "600000", "RAY_num_workers_soft_limit": "16"}
        with (self.folder / log).open("w") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                cwd=ROOT,
                env=clean_environment() | own | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )
        self.processes.append(process)
        return process

    def join(self, *options: str) -> None:
        """Start Ray here."""
        common = ["--block", f"--node-ip-address={self.address}", "--num-cpus=2", "--disable-usage-stats"]
        store = [f"--temp-dir={self.folder}/ray", f"--object-store-memory={256 * 1024**2}"]
        self.start("ray.log", str(BIN / "ray"), "start", *common, *store, *options)

    def end(self) -> None:
        """End everything that runs here, and the host."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True)
        subprocess.run(["kill", "-9", *listed.stdout.split()], capture_output=True)
        for process in self.processes:
            process.wait()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)
        subprocess.run(["ip", "link", "del", f"kav{self.number}"], capture_output=True)


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts; a test may append more."""
    if os.geteuid() or subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        pytest.skip("no right to make network namespaces here")
    folder = Path(f"/tmp/ka_ray_hosts_{os.getpid()}")
    made: list[Host] = []
    sh(f"ip link add {BRIDGE} type bridge && ip link set {BRIDGE} up")
    try:
        made += [Host(1, folder), Host(2, folder)]
        yield made
    finally:
        for host in made:
            host.end()
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def test_two_hosts_finish_the_digits_and_a_third_joins_half_way(hosts, tmp_path):
    head, second = hosts
    head.join("--head", f"--port={GCS}", f"--dashboard-port={DASHBOARD}", "--dashboard-host=127.0.0.1")

    def answers(num_nodes: int) -> bool:
        where = f"'{head.address}:{GCS}', logging_level=50"
        code = f"import ray; ray.init({where}); print('NODES', len(ray.nodes()))"
        asked = head.start("asked.log", str(BIN / "python"), "-c", code)
        return asked.wait() == 0 and f"NODES {num_nodes}" in (head.folder / "asked.log").read_text()

    wait_until(lambda: answers(1), 300, "the head does not answer")
    second.join(f"--address={head.address}:{GCS}")
    wait_until(lambda: answers(2), 300, "the second host does not join")

    out, log = tmp_path / "out", head.folder / "job.log"
    # A worker takes both CPUs of its host: two train on two hosts, and a third waits for a third host.
    options = ["ray.workers={min: 2, max: 3}", "placement.trainers.cpu=2", "placement.teachers.cpu=1"]
    options += ["joint.epochs=80", "tracking.backend=none"]
    command = [str(BIN / "ray"), "job", "submit", "--address", f"http://127.0.0.1:{DASHBOARD}"]
    command += ["--working-dir", ".", "--", "python", "jobs/amalgamate.py", "jobs/configs/digits.yaml"]
    job = head.start("job.log", *command, "--output", str(out), *(f"--set={option}" for option in options))
    begun = lambda: "joint epoch=2/" in log.read_text() or job.poll() is not None  # noqa: E731
    wait_until(begun, PATIENCE_S, "no joint learning")
    assert job.poll() is None, log.read_text()[-3000:]
    hosts.append(Host(3, head.folder.parent))
    hosts[2].join(f"--address={head.address}:{GCS}")
    assert job.wait(2 * PATIENCE_S) == 0, log.read_text()[-3000:]

    said = log.read_text()
    assert re.findall(r"a group of (\d) workers has begun", said)[-2:] == ["2", "3"]
    report = Report.load(out)
    assert report.accuracy.images == 359
    assert report.accuracy.union >= 0.97 * report.accuracy.ensemble
