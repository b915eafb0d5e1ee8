"""A cluster of `cluster/local.sh` in which tests kill processes, and jobs that run on it meanwhile."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
JOB_TIMEOUT_S = 600
"""Maximum duration of one job, in seconds."""

LAYERWISE = (
    "codes={solver: sgd, epochs: 30}",
    "layers={epochs: 20, batch_size: 32, learning_rate: 0.01}",
    "joint={epochs: 20, batch_size: 32, learning_rate: 0.002}",
)
"""With these sections the demo learns layer by layer, in all stages in which something can be killed."""

DIGITS = (
    "jobs/configs/digits.yaml",
    *(w for s in (*LAYERWISE, "extract.shard_mib=2", "tracking.backend=none") for w in ("--set", s)),
)
"""Arguments of a job script for a run on the digits with several shards of features."""


def wait_until(condition: Callable[[], object], timeout_s: float, failure: str) -> None:
    """Wait until a condition holds.

    Args:
        condition: Called every 20 ms until it returns something true.
        timeout_s: Maximum time to wait, in seconds.
        failure: Error message if the condition does not hold in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s:.0f} s: {failure}"
        time.sleep(0.02)


@dataclass
class LocalCluster:
    """A head and workers as separate processes on this machine, started by `cluster/local.sh`.

    Attributes:
        folder: Folder for the token, the logs and the data of the cluster.
        port: First port of the cluster.
        settings: Environment variables for the script, such as ``KA_RAY_AUTH``.
    """

    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)

    def call(self, *arguments: str) -> str:
        """Call the script with arguments, and return what it prints."""
        variables = {
            "KA_RAY_CLUSTER_DIR": str(self.folder),
            "KA_RAY_PORT": str(self.port),
            "KA_RAY_TIMEOUT": "400",
        }
        done = subprocess.run(
            [str(ROOT / "cluster" / "local.sh"), *arguments],
            env=clean_environment() | variables | self.settings,
            capture_output=True,
            text=True,
            timeout=JOB_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a shell that uses the cluster."""
        exported = dict[str, str]()
        for line in self.call("env").splitlines():
            command, *parts = shlex.split(line)
            for part in parts:
                if command == "export":
                    name, _, value = part.partition("=")
                    exported[name] = value
        return clean_environment() | exported

    @property
    def alive(self) -> list[int]:
        """The numbers of the workers that Ray reports as alive."""
        lines = [line.split() for line in self.call("status").splitlines()]
        return [int(line[0][4:]) for line in lines if line[1:2] == ["ALIVE"] and line[0] != "node0"]

    def processes(self, title: str) -> dict[int, int]:
        """Return the processes of the cluster whose command line matches a regular expression.

        Args:
            title: Regular expression that is searched for in the command line.

        Returns:
            Process id -> number of the node.
        """
        nodes = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if re.search(title, command) and (node := self._node_of(int(process.name))) is not None:
                    nodes[int(process.name)] = node
            except OSError:
                continue  # the process has ended in the meantime
        return nodes

    def _node_of(self, pid: int) -> int | None:
        """Return the node that the environment of a process, or of one of its ancestors, names."""
        prefix = f"KA_RAY_LOCAL_NODE={self.folder}/node".encode()
        while pid > 1:
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(prefix):
                    return int(entry[len(prefix) :])
            pid = int(re.sub(r".*\)", "", Path(f"/proc/{pid}/stat").read_text()).split()[1])
        return None


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without the settings of another cluster or tracker."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "KA_RAY_"))}
    return kept | {"PATH": f"{BIN}:{kept['PATH']}"}


@dataclass
class Job:
    """A script of `jobs/` that runs under `ray job submit`.

    Attributes:
        process: The process of `ray job submit`, which ends with the job.
        log: File with the output of the job.
    """

    process: "subprocess.Popen[str]"
    log: Path

    @property
    def text(self) -> str:
        """What the job has printed so far."""
        return self.log.read_text()

    def wait(self) -> int:
        """Wait for the end of the job, and return the exit code of `ray job submit`."""
        try:
            return self.process.wait(JOB_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the job did not end in {JOB_TIMEOUT_S} s:\n{self.text[-3000:]}") from None


def submit(cluster: LocalCluster, log: Path, script: str, *arguments: str) -> Job:
    """Submit a script as a user would, from the folder of the repository.

    Args:
        cluster: The cluster that runs it.
        log: File for the output of the job.
        script: Name of a script in `jobs/`.
        arguments: Arguments of the script.
    """
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", "--", "python", f"jobs/{script}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=ROOT,
            env=cluster.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return Job(process, log)


def kill(pid: int) -> None:
    """Kill a process with SIGKILL, as the kernel does if memory runs out."""
    os.kill(pid, signal.SIGKILL)
