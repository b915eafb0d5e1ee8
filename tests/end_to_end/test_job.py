"""Jobs on a Ray head with token authentication, sent by `ray job submit` and by `ka-ray submit`."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from ka_ray.reports.report import Report
from ka_ray.teachers.plain import plain_conv_net

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def ray_head(tmp_path):
    """A separate Ray head with token authentication: its address, and environment variables for clients."""
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    # As in a shell where the virtual environment is activated.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".ray" / "auth_token").exists()
    command = [RAY, "start", "--head", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    for option in ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export"):
        command.append(f"--{option}-port={free_port()}")  # the default port may be used by another Ray
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


def submit_with_ray(ray_head, *arguments: str) -> "subprocess.CompletedProcess[str]":
    address, environment = ray_head
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


def test_the_digits_run_as_a_job_and_a_bad_config_or_token_fails_it(ray_head, tmp_path):
    arguments = ("jobs/amalgamate.py", "jobs/configs/digits.yaml", "--output")
    done = submit_with_ray(ray_head, *arguments, str(tmp_path / "run"), "--set", "joint.epochs=5")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert Report.load(tmp_path / "run").accuracy.union > 0.85

    bad = submit_with_ray(ray_head, *arguments, str(tmp_path / "bad"), "--set", "joint.rate=5")
    assert bad.returncode != 0
    assert "joint.rate: unknown key" in bad.stdout + bad.stderr

    address, environment = ray_head
    for wrong_token in ({"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}):
        refused = submit_with_ray((address, environment | wrong_token), "--version")
        assert refused.returncode != 0, refused.stdout


@pytest.fixture
def project(tmp_path):
    """The folder of a user, with a config and two teachers that git ignores, so Ray leaves them out."""
    folder = tmp_path / "project"
    teachers = []
    for name, first in (("low", 0), ("high", 5)):
        checkpoint = folder / "runs" / name / "teacher.safetensors"
        checkpoint.parent.mkdir(parents=True)
        save_file(plain_conv_net(5, (8, 8)).state_dict(), checkpoint)
        teachers.append(
            {
                "name": name,
                "network": "mine.nets:small",
                "classes": [f"digit_{i}" for i in range(first, first + 5)],
                "checkpoint": str(checkpoint.relative_to(folder)),
            }
        )
    (folder / ".gitignore").write_text("runs/\n")
    (folder / "mine").mkdir()
    factory = (
        "from ka_ray.teachers.plain import plain_conv_net\ndef small(): return plain_conv_net(5, (8, 8))\n"
    )
    (folder / "mine/nets.py").write_text(factory)
    tree = {
        "name": "small",
        "images": {"source": "digits", "limit": 300},
        "teachers": teachers,
        "taps": {tap: {"low": tap, "high": tap, "student": tap} for tap in ("conv1", "conv2")},
        "student": {"network": "plain", "arguments": {"widths": [8, 8]}},
        "codes": {"epochs": 1},
        "layers": {"epochs": 1},
        "joint": {"epochs": 1},
        "ray": {"workers": 1},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(tree))
    return folder


def start_ka_ray_submit(
    ray_head, project: Path, *arguments: str, **changed_variables: str
) -> "subprocess.Popen[str]":
    address, environment = ray_head
    command = [sys.executable, "-m", "ka_ray.cli", "submit", "--address", address, *arguments]
    python_path = {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment | python_path | changed_variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def submit_with_ka_ray(ray_head, project: Path, *arguments: str, **changed_variables: str) -> tuple[int, str]:
    with start_ka_ray_submit(ray_head, project, *arguments, **changed_variables) as process:
        out, _ = process.communicate(timeout=600)
        return process.returncode, out


def test_ka_ray_submit_sends_ignored_files_and_exits_with_the_code_of_the_job(ray_head, project, tmp_path):
    output = tmp_path / "out"
    code, out = submit_with_ka_ray(ray_head, project, "small.yaml", "--output", str(output))
    assert code == 0, out
    for line in ("sent: runs/low/teacher.safetensors", "sent: module mine", "joint epoch=1/1", "SUCCEEDED"):
        assert line in out
    report = Report.load(output)
    assert report.accuracy.images > 0
    assert (
        str(project) not in (output / "config.json").read_text()
    )  # the job has used the files that were sent

    # With a changed file, Ray unpacks the job in another folder on the cluster; the run still resumes.
    (project / "mine/nets.py").write_text((project / "mine/nets.py").read_text() + "# the same\n")
    code, out = submit_with_ka_ray(ray_head, project, "small.yaml", "--output", str(output))
    assert code == 0, out
    assert "epoch=" not in out
    [job_id] = re.findall(r"^job: (\S+)$", out, re.MULTILINE)
    code, followed_output = submit_with_ka_ray(ray_head, project, "--follow", job_id)
    assert (code, followed_output.splitlines()[-3:]) == (0, out.splitlines()[-3:])

    # Errors that only the job can find set its exit code. If an error is found before, no job is submitted.
    bad = ("small.yaml", "--output", str(tmp_path / "bad"), "--set")
    code, out = submit_with_ka_ray(ray_head, project, *bad, "taps.conv1.low=nowhere")
    assert (code, "error: taps.conv1: the network has no module" in out) == (2, True), out
    code, out = submit_with_ka_ray(ray_head, project, *bad, "joint.rate=5")
    assert (code, "job: " in out, "joint.rate: unknown key" in out) == (2, False, True), out

    for wrong_token in ({"RAY_AUTH_TOKEN": "f" * 32}, {"RAY_AUTH_MODE": "disabled"}):
        code, out = submit_with_ka_ray(
            ray_head, project, "small.yaml", "--output", str(output), **wrong_token
        )
        assert (code, out.count("\n")) == (2, 1), out
        assert "Set RAY_AUTH_MODE=token and the cluster's token" in out
        assert "f" * 32 not in out


def test_ka_ray_submit_fails_if_the_job_is_stopped(ray_head, project, tmp_path):
    address, environment = ray_head
    arguments = ("small.yaml", "--output", str(tmp_path / "out"))
    with start_ka_ray_submit(ray_head, project, *arguments) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("extracting "):
                job_id = next(text.split()[1] for text in lines if text.startswith("job: "))
                stop = [RAY, "job", "stop", "--address", address, job_id]
                subprocess.run(stop, env=environment, check=True, capture_output=True)
    assert process.returncode == 130, "".join(lines)
    assert lines[-1].startswith(f"job {job_id}: STOPPED")
