"""`ray start --head`, then `ray job submit` of the digits run, with token authentication at its default."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ka_ray.report import Report

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def head(tmp_path):
    """A Ray head of its own as the README starts it: a token is made, authentication stays at its default."""
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").exists()
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += ["--temp-dir", f"/tmp/ka_ray_job_{port}"]
    started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stdout + started.stderr
    yield f"http://127.0.0.1:{dashboard}", environment | {"RAY_AUTH_MODE": "token"}
    pids = subprocess.run(
        ["pgrep", "-f", f"ka_ray_job_{port}"], capture_output=True, text=True
    ).stdout.split()
    for pid in pids:
        subprocess.run(["kill", "-9", pid], capture_output=True)
    shutil.rmtree(f"/tmp/ka_ray_job_{port}", ignore_errors=True)


def submit(head, *arguments: str) -> "subprocess.CompletedProcess[str]":
    address, environment = head
    command = [
        RAY,
        "job",
        "submit",
        "--address",
        address,
        "--working-dir",
        ".",
        "--",
        sys.executable,
        *arguments,
    ]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
    )


def test_the_digits_run_as_a_job_and_a_bad_config_fails_the_job(head, tmp_path):
    arguments = ("jobs/amalgamate.py", "jobs/configs/digits.yaml", "--output")
    done = submit(head, *arguments, str(tmp_path / "run"), "--set", "joint.epochs=5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert Report.load(tmp_path / "run").accuracy.union > 0.85

    bad = submit(head, *arguments, str(tmp_path / "bad"), "--set", "joint.rate=5")
    assert bad.returncode != 0
    assert "joint.rate: unknown key" in bad.stdout + bad.stderr

    address, environment = head
    for stranger in ({"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit((address, environment | stranger), "--version")
        assert refused.returncode != 0, refused.stdout
