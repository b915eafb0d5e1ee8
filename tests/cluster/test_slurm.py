"""`cluster/slurm.sh` with stand-ins for Slurm's own commands that run everything on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/slurm.sh"
BIN = Path(sys.executable).parent
STAND_INS = {
    "scontrol": 'echo "$3"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
}
JOB = """
import os, sys, time
import ray
ray.init(log_to_driver=False)
cpus = ray.cluster_resources()["CPU"]
print("said", sys.argv[1:], len(ray.nodes()), cpus, os.environ["RAY_AUTH_MODE"], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


@pytest.fixture
def slurm(tmp_path):
    """What a batch script finds: Slurm's commands and variables, and a job that ends with 7."""
    (tmp_path / "bin").mkdir()
    for name, body in STAND_INS.items():
        command = tmp_path / "bin" / name
        command.write_text(f"#!/usr/bin/env bash\n{body}\n")
        command.chmod(0o755)
    (tmp_path / "job.py").write_text(JOB)
    return os.environ | {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_CPUS_PER_TASK": "3",
        "KA_RAY_BIN": str(BIN),
        "KA_RAY_JOB": str(tmp_path / "job.py"),
        "KA_RAY_STATE": str(tmp_path / "state"),
        "RAY_ADDRESS": "127.0.0.1:1",  # another cluster's, which must not be met
    }


def start(environment, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_over(environment) -> list[str]:
    """Processes of the job, found by the folder of its token or of Ray's own files."""
    marks = environment["KA_RAY_STATE"], f"/tmp/ka_ray_{environment['SLURM_JOB_ID']}"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_text() + (process / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if any(mark in text for mark in marks) and int(process.name) != os.getpid():
            found.append(text.replace("\0", " ")[-200:])
    return found


def await_no_process(environment) -> None:
    until = time.monotonic() + 30
    while left_over(environment):
        assert time.monotonic() < until, left_over(environment)
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("arguments", "change", "said"),
    [
        (["config.yaml"], {"SLURM_JOB_ID": ""}, "not in a Slurm job"),
        ([], {}, "which config?"),
        (["config.yaml"], {"KA_RAY_BIN": "/nowhere"}, "no ray in /nowhere"),
        (["config.yaml"], {"KA_RAY_AUTH": "maybe"}, "neither token nor off"),
    ],
)
def test_what_is_missing_is_said(slurm, arguments, change, said, tmp_path):
    job = start(slurm | change, *arguments)
    assert said in job.communicate(timeout=30)[0]
    assert job.returncode == 2
    assert not (tmp_path / "state").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_jobs_exit_code_is_passed_on_and_nothing_is_left(slurm, tmp_path):
    job = start(slurm, "0", "--output", "somewhere")
    text = job.communicate(timeout=300)[0]
    assert job.returncode == 7, text
    assert "said ['0', '--output', 'somewhere'] 1 3.0 token" in text
    assert list((tmp_path / "state").iterdir()) == []  # no token stays
    assert not Path(f"/tmp/ka_ray_{slurm['SLURM_JOB_ID']}").exists()
    await_no_process(slurm)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_time_is_up_ends_everything(slurm, tmp_path):
    job = start(slurm | {"KA_RAY_AUTH": "off"}, "900")
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("said"):
            assert line.endswith("3.0 disabled\n")
            break
    job.send_signal(signal.SIGTERM)
    text = job.communicate(timeout=120)[0]
    assert job.returncode == 143, text
    assert list((tmp_path / "state").iterdir()) == []
    await_no_process(slurm)
