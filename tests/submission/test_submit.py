"""Test `ka-ray submit` without a cluster: what is refused, and which files and command are sent."""

import shlex
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from ka_ray import cli
from ka_ray.errors import InputError
from ka_ray.submission import submit as submit_module
from ka_ray.submission.submit import (
    JobRequest,
    build_entrypoint,
    job_environment,
    job_server_address,
    prepare_job,
)

ADDRESS = "http://head:8265"


@pytest.fixture
def project(tmp_path, config_tree, monkeypatch):
    """Return a folder with configs that name the checkpoints of teachers by relative paths."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for teacher in config_tree["teachers"]:
        teacher["checkpoint"] = f"{teacher['name']}.safetensors"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_tree))
    teacher_to_train = config_tree["teachers"][0] | {"training": {"epochs": 1}}
    del teacher_to_train["checkpoint"]
    teach_config = {"name": "low", "images": {"source": "digits"}, "teacher": teacher_to_train}
    (tmp_path / "teach.yaml").write_text(yaml.safe_dump(teach_config))
    return tmp_path


class FakeJobClient:
    """Replaces the job client: records the job_client that it is sent."""

    def __init__(self):
        self.sent = []

    def submit(self, entrypoint, package, environment):
        with zipfile.ZipFile(package) as sent:
            self.sent.append((entrypoint, {n for n in sent.namelist() if "/" not in n}, environment))
        return "raysubmit_1"

    def dashboard_url(self, job_id):
        return f"{ADDRESS}/#/job_client/{job_id}"

    address = ADDRESS


@pytest.fixture
def job_client(monkeypatch):
    fake = FakeJobClient()
    monkeypatch.setattr(submit_module, "connect_job_client", lambda address: fake)
    monkeypatch.setattr(submit_module, "follow_job", lambda client, job_id: 42)
    return fake


def run_cli(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ka-ray", "submit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


OUTPUT = ("--output", "/shared/out")


def test_submit_sends_a_run_and_returns_its_exit_code(project, job_client, monkeypatch, capsys):
    arguments = ("run.yaml", "--address", ADDRESS, *OUTPUT, "--set", "joint.epochs=2")
    assert run_cli(monkeypatch, *arguments) == 42
    entrypoint = "python -m ka_ray.cli run run.yaml --set joint.epochs=2 --output /shared/out"
    files = {"run.yaml", "low.safetensors", "high.safetensors"}
    assert job_client.sent == [(entrypoint, files, {"PYTHONUNBUFFERED": "1"})]
    out = capsys.readouterr().out
    for line in (
        "sent: high.safetensors (1 file(s), ",
        "job: raysubmit_1",
        "output: /shared/out",
        entrypoint,
    ):
        assert line in out
    assert f"dashboard: {ADDRESS}/#/job_client/raysubmit_1" in out


def test_no_wait_prints_how_to_follow_the_job(project, job_client, monkeypatch, capsys):
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUTPUT, "--no-wait") == 0
    assert capsys.readouterr().out.endswith(f"ka-ray submit --follow raysubmit_1 --address {ADDRESS}\n")


def test_follow_sends_no_new_job(job_client, monkeypatch):
    assert run_cli(monkeypatch, "--follow", "raysubmit_1", "--address", ADDRESS) == 42
    assert job_client.sent == []


@pytest.mark.parametrize("output", ["s3://bucket/out", "gs://bucket/out", "/shared/out"])
def test_the_output_can_be_set_in_the_config(project, job_client, monkeypatch, output):
    arguments = ("run.yaml", "--address", ADDRESS, "--set", f"output={output}")
    assert run_cli(monkeypatch, *arguments) == 42
    assert job_client.sent[0][0].endswith(f"--output {output}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run.yaml"], "--output: is missing; the job's working directory on the cluster is temporary"),
        (["run.yaml", "--output", "runs/x"], "--output: 'runs/x' is relative"),
        (["run.yaml", "--output", "~/x"], "--output: '~/x' is relative"),
        (["missing.yaml", *OUTPUT], "config missing.yaml does not exist"),
        (["run.yaml", *OUTPUT, "--set", "joint.rate=5"], "joint.rate: unknown key"),
        (["run.yaml", *OUTPUT, "--set", "teachers.0.checkpoint=gone.pt"], "gone.pt does not exist"),
        (["run.yaml", *OUTPUT, "--set", "teachers.0.checkpoint=../out.pt"], "../out.pt lies outside"),
        (
            ["run.yaml", *OUTPUT, "--set", "tracking.uri=http://me:secret@m"],
            "tracking.uri: credentials in the URI",
        ),
        (["run.yaml", *OUTPUT, "--extend", "nowhere"], "nowhere does not exist"),
        (["run.yaml", *OUTPUT, "--verb", "dance"], "--verb: 'dance'; there are run, tune"),
        (["run.yaml", *OUTPUT, "--verb", "teach"], "teacher: Field required"),
        (["run.yaml", *OUTPUT, "--methods", "direct"], "--methods belongs to --verb compare"),
        (["run.yaml", *OUTPUT, "--verb", "compare", "--extend", "x"], "--extend belongs to --verb run"),
        (
            ["run.yaml", *OUTPUT, "--verb", "compare", "--methods", "best"],
            "--methods: best; there are direct",
        ),
        (["run.yaml", *OUTPUT, "--verb", "compare", "--vary", "seed=1,2"], "--vary 'seed=1,2'"),
        (
            ["run.yaml", *OUTPUT, "--address", "head:6379"],
            "--address: is 'head:6379'; give the cluster's job server",
        ),
        (["run.yaml", *OUTPUT, "--address", ""], "--address: is missing, and RAY_ADDRESS is not set"),
        (["run.yaml", "--follow", "job"], "give either a CONFIG to send, or --follow JOB"),
        ([], "give either a CONFIG to send, or --follow JOB"),
    ],
)
def test_an_invalid_request_is_refused_before_anything_is_sent(
    project, job_client, monkeypatch, capsys, arguments, message
):
    (project.parent / "out.pt").touch()
    address = [] if "--address" in arguments else ["--address", ADDRESS]
    assert run_cli(monkeypatch, *arguments, *address) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "secret" not in captured.err
    assert job_client.sent == []


def test_a_too_large_package_is_refused_before_anything_is_sent(project, job_client, monkeypatch, capsys):
    with (project / "low.safetensors").open("ab") as file:
        file.truncate(600 * 1024**2)
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUTPUT) == 2
    assert "low.safetensors (600.0 MiB)" in capsys.readouterr().err
    assert job_client.sent == []


def test_the_variable_ray_address_is_used_only_if_it_is_a_job_server(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "https://cluster")
    assert job_server_address(None) == "https://cluster"
    assert job_server_address("http://other") == "http://other"
    for other in ("10.0.0.1:6379", "ray://head:10001", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", other)
        with pytest.raises(InputError, match=f"--address: is '{other}'"):
            job_server_address(None)


def test_the_entrypoint_quotes_the_overrides_and_options_of_the_user():
    overrides = ["a=it's $HOME; rm -rf /", "taps={a: {b: 'c d'}}", "k=`x`"]
    options = {"methods": "direct,distill", "seeds": 3, "vary": ["joint.epochs=1,2", "x=y z"], "extend": None}
    job_request = JobRequest("compare", Path("my runs/a.yaml"), overrides, None, options)
    words = shlex.split(build_entrypoint(job_request, "my runs/a.yaml", overrides, "s3://b/o"))
    assert words[:5] == ["python", "-m", "ka_ray.cli", "compare", "my runs/a.yaml"]
    assert words[5:11] == [word for override in overrides for word in ("--set", override)]
    assert words[11:] == [
        *("--methods", "direct,distill", "--seeds", "3", "--vary", "joint.epochs=1,2", "--vary", "x=y z"),
        *("--output", "s3://b/o"),
    ]


@pytest.mark.parametrize(
    "job_request",
    [
        JobRequest("run", Path("run.yaml"), ["seed=1"], "/o", {"extend": None}),
        JobRequest("tune", Path("run.yaml"), [], "/o", {}),
        JobRequest("spectrum", Path("run.yaml"), [], "/o", {}),
        JobRequest(
            "compare",
            Path("run.yaml"),
            [],
            "/o",
            {"methods": "direct", "seeds": 2, "vary": ["joint.epochs=1"]},
        ),
        JobRequest("teach", Path("teach.yaml"), ["seed=2"], "/o", {}),
    ],
    ids=lambda request: request.verb,
)
def test_the_command_line_accepts_every_entrypoint(project, monkeypatch, job_request):
    """Parse the job's command with the command line itself, up to the call of the workflow's function."""
    package, overrides, output = prepare_job(job_request)
    words = shlex.split(build_entrypoint(job_request, package.config, overrides, output))
    called = []
    names = ("amalgamate", "search_widths", "measure_spectrum", "compare", "teach")

    def record_call(config, *rest):
        called.append((config, *rest))
        raise InputError("the call was recorded")

    for name in names:
        monkeypatch.setattr(f"ka_ray.{name}", record_call, raising=False)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit) as stopped, redirect_stdout(sys.stderr):
        cli.main()
    assert stopped.value.code == 2
    assert called[0][0].output_dir == Path("/o")
    assert called[0][1:] == (() if job_request.verb != "compare" else (["direct"], 2, ["joint.epochs=1"]))


def test_a_tracking_server_is_passed_on_unless_its_uri_has_a_password(project, monkeypatch):
    job_request = JobRequest("run", Path("run.yaml"), [], "/o", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert job_environment()[0] == {"PYTHONUNBUFFERED": "1", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert prepare_job(job_request)[1] == ["tracking.uri=http://mlflow:5000"]
    configured = JobRequest("run", Path("run.yaml"), ["tracking.uri=http://other:5000"], "/o", {})
    assert prepare_job(configured)[1] == ["tracking.uri=http://other:5000"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    environment, note = job_environment()
    assert environment == {"PYTHONUNBUFFERED": "1"}
    assert "not passed on" in note
    assert "secret" not in note
    assert prepare_job(job_request)[1] == []


def test_no_secret_in_the_environment_is_sent_with_the_job(project, job_client, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUTPUT) == 42
    assert "s3cret" not in repr(job_client.sent)
