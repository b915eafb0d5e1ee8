"""`cluster/slurm.sh` with replacements for Slurm's commands that run everything on this machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster/slurm.sh"
BIN = Path(sys.executable).parent
# Slurm's commands, as far as the script uses them: the only node is this machine.
SLURM_COMMANDS = {
    "scontrol": 'echo "$3"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
}
JOB = """
import os, sys, time
import ray
ray.init(log_to_driver=False)
cpus = ray.cluster_resources()["CPU"]
print("values", sys.argv[1:], len(ray.nodes()), cpus, os.environ["RAY_AUTH_MODE"], flush=True)
time.sleep(float(sys.argv[1]))
sys.exit(7)
"""


@pytest.fixture
def slurm_environment(tmp_path):
    """Return the environment of a batch script, with Slurm's commands and a job that exits with 7."""
    (tmp_path / "bin").mkdir()
    for name, body in SLURM_COMMANDS.items():
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
        "RAY_ADDRESS": "127.0.0.1:1",  # address of another cluster, which the script must not use
    }


def start_script(environment, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def find_job_processes(environment) -> list[str]:
    """Return the processes whose environment or command line names a folder of the job."""
    folders = environment["KA_RAY_STATE"], f"/tmp/ka_ray_{environment['SLURM_JOB_ID']}"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "environ").read_text() + (process / "cmdline").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        if any(folder in text for folder in folders) and int(process.name) != os.getpid():
            found.append(text.replace("\0", " ")[-200:])
    return found


def wait_until_no_process(environment) -> None:
    deadline = time.monotonic() + 30
    while find_job_processes(environment):
        assert time.monotonic() < deadline, find_job_processes(environment)
        time.sleep(0.5)


@pytest.mark.parametrize(
    ("arguments", "changed_variables", "message"),
    [
        (["config.yaml"], {"SLURM_JOB_ID": ""}, "this is not a Slurm job; submit the script with sbatch"),
        ([], {}, "no config was given; usage: sbatch cluster/slurm.sh CONFIG"),
        (["config.yaml"], {"KA_RAY_BIN": "/nowhere"}, "KA_RAY_BIN: there is no ray in /nowhere"),
        (["config.yaml"], {"KA_RAY_AUTH": "maybe"}, "KA_RAY_AUTH: maybe is neither token nor off"),
    ],
)
def test_missing_and_wrong_settings_are_refused(
    slurm_environment, arguments, changed_variables, message, tmp_path
):
    job = start_script(slurm_environment | changed_variables, *arguments)
    assert message in job.communicate(timeout=30)[0]
    assert job.returncode == 2
    assert not (tmp_path / "state").exists()


def test_a_folder_for_the_token_that_leads_elsewhere_is_refused(slurm_environment, tmp_path):
    """The ids of the next jobs are known, so somebody else can be there first."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / slurm_environment["SLURM_JOB_ID"]).symlink_to(tmp_path / "theirs")
    job = start_script(slurm_environment, "config.yaml")
    assert "is not a folder that belongs to you; set KA_RAY_STATE" in job.communicate(timeout=30)[0]
    assert job.returncode == 2
    assert list((tmp_path / "theirs").iterdir()) == []


@pytest.mark.ray
@pytest.mark.slow
def test_the_script_exits_with_the_code_of_the_job_and_leaves_no_files_or_processes(
    slurm_environment, tmp_path
):
    job = start_script(slurm_environment, "0", "--output", "somewhere")
    text = job.communicate(timeout=300)[0]
    assert job.returncode == 7, text
    assert "values ['0', '--output', 'somewhere'] 1 3.0 token" in text
    assert list((tmp_path / "state").iterdir()) == []  # the token is deleted
    assert not Path(f"/tmp/ka_ray_{slurm_environment['SLURM_JOB_ID']}").exists()
    wait_until_no_process(slurm_environment)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_whose_time_limit_is_reached_ends_all_processes(slurm_environment, tmp_path):
    job = start_script(slurm_environment | {"KA_RAY_AUTH": "off"}, "900")
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("values"):
            assert line.endswith("3.0 disabled\n")
            break
    job.send_signal(signal.SIGTERM)
    text = job.communicate(timeout=120)[0]
    assert job.returncode == 143, text
    assert list((tmp_path / "state").iterdir()) == []
    wait_until_no_process(slurm_environment)
