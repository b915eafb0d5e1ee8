"""A cluster of `cluster/local.sh` to break things in, and jobs that are watched while they are broken."""

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
PATIENCE_S = 600
"""So long at most any one job may take."""

DIGITS = ("jobs/configs/digits.yaml", "--set", "extract.shard_mib=2", "--set", "tracking.backend=none")


def wait_until(what: Callable[[], object], patience_s: float, why: str) -> None:
    ends = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < ends, f"after {patience_s:.0f} s: {why}"
        time.sleep(0.02)


@dataclass
class LocalCluster:
    """A head and workers as separate processes on this machine.

    Attributes:
        folder: Of its token, logs and data.
        port: The first of its ports.
        settings: For the script, e.g. ``KA_RAY_AUTH``.
    """

    folder: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)

    def call(self, *arguments: str) -> str:
        """Call the script; give what it prints."""
        own = {"KA_RAY_CLUSTER_DIR": str(self.folder), "KA_RAY_PORT": str(self.port), "KA_RAY_TIMEOUT": "400"}
        done = subprocess.run(
            [str(ROOT / "cluster" / "local.sh"), *arguments],
            env=clean_environment() | own | self.settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        """What a shell needs to use the cluster."""
        given = dict[str, str]()
        for line in self.call("env").splitlines():
            command, *parts = shlex.split(line)
            for part in parts:
                if command == "export":
                    name, _, value = part.partition("=")
                    given[name] = value
        return clean_environment() | given

    @property
    def alive(self) -> list[int]:
        """The numbers of the workers that Ray knows to be alive."""
        lines = [line.split() for line in self.call("status").splitlines()]
        return [int(line[0][4:]) for line in lines if line[1:2] == ["ALIVE"] and line[0] != "node0"]

    def processes(self, title: str) -> dict[int, int]:
        """Find the cluster's processes whose command line matches: process id -> number of the node."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if re.search(title, command) and (node := self._node_of(int(place.name))) is not None:
                    found[int(place.name)] = node
            except OSError:
                continue  # it has ended meanwhile
        return found

    def _node_of(self, pid: int) -> int | None:
        """A process carries its node's name in its environment, or descends from one that does."""
        mark = f"KA_RAY_LOCAL_NODE={self.folder}/node".encode()
        while pid > 1:
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(mark):
                    return int(entry[len(mark) :])
            pid = int(re.sub(r".*\)", "", Path(f"/proc/{pid}/stat").read_text()).split()[1])
        return None


def clean_environment() -> dict[str, str]:
    """This environment without what another cluster or tracker left in it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_", "KA_RAY_"))}
    return kept | {"PATH": f"{BIN}:{kept['PATH']}"}


@dataclass
class Job:
    """A script of `jobs/` under `ray job submit`."""

    process: "subprocess.Popen[str]"
    log: Path

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def wait(self) -> int:
        """Wait for its end; give the exit code of `ray job submit`."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the job hangs:\n{self.text[-3000:]}") from None


def submit(cluster: LocalCluster, log: Path, script: str, *arguments: str) -> Job:
    """Submit a script as a user would, from the repository's folder."""
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
    """As the kernel kills where memory runs out."""
    os.kill(pid, signal.SIGKILL)
