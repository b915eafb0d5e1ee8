"""`ka-ray submit` up to the cluster's door: what is refused here, what is sent, under which command."""

import shlex
import sys
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import yaml

from ka_ray import cli
from ka_ray.errors import InputError
from ka_ray.submission import submit as submitting
from ka_ray.submission.submit import JobRequest, command, job_environment, job_server, prepare

ADDRESS = "http://head:8265"


@pytest.fixture
def project(tmp_path, config_tree, monkeypatch):
    """A folder with a config that names its teachers by relative path."""
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for teacher in config_tree["teachers"]:
        teacher["checkpoint"] = f"{teacher['name']}.safetensors"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config_tree))
    one = config_tree["teachers"][0] | {"training": {"epochs": 1}}
    del one["checkpoint"]
    taught = {"name": "low", "images": {"source": "digits"}, "teacher": one}
    (tmp_path / "teach.yaml").write_text(yaml.safe_dump(taught))
    return tmp_path


class FakeJobs:
    """Takes jobs; nothing else may be asked of it."""

    def __init__(self):
        self.sent = []

    def submit(self, entrypoint, package, environment):
        with zipfile.ZipFile(package) as sent:
            self.sent.append((entrypoint, {n for n in sent.namelist() if "/" not in n}, environment))
        return "raysubmit_1"

    def page(self, job_id):
        return f"{ADDRESS}/#/jobs/{job_id}"

    address = ADDRESS


@pytest.fixture
def jobs(monkeypatch):
    fake = FakeJobs()
    monkeypatch.setattr(submitting, "open_jobs", lambda address: fake)
    monkeypatch.setattr(submitting, "watch", lambda jobs, job_id: 42)
    return fake


def run_cli(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ka-ray", "submit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


OUT = ("--output", "/shared/out")


def test_a_run_is_sent_and_its_exit_code_is_ours(project, jobs, monkeypatch, capsys):
    given = ("run.yaml", "--address", ADDRESS, *OUT, "--set", "joint.epochs=2")
    assert run_cli(monkeypatch, *given) == 42
    entrypoint = "python -m ka_ray.cli run run.yaml --set joint.epochs=2 --output /shared/out"
    files = {"run.yaml", "low.safetensors", "high.safetensors"}
    assert jobs.sent == [(entrypoint, files, {"PYTHONUNBUFFERED": "1"})]
    out = capsys.readouterr().out
    for line in (
        "sent: high.safetensors (1 file(s), ",
        "job: raysubmit_1",
        "output: /shared/out",
        entrypoint,
    ):
        assert line in out
    assert f"dashboard: {ADDRESS}/#/jobs/raysubmit_1" in out


def test_without_waiting_it_says_how_to_follow(project, jobs, monkeypatch, capsys):
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUT, "--no-wait") == 0
    assert capsys.readouterr().out.endswith(f"ka-ray submit --follow raysubmit_1 --address {ADDRESS}\n")


def test_a_job_sent_before_is_followed(jobs, monkeypatch):
    assert run_cli(monkeypatch, "--follow", "raysubmit_1", "--address", ADDRESS) == 42
    assert jobs.sent == []


@pytest.mark.parametrize("output", ["s3://bucket/out", "gs://bucket/out", "/shared/out"])
def test_the_output_may_stand_in_the_config(project, jobs, monkeypatch, output):
    given = ("run.yaml", "--address", ADDRESS, "--set", f"output={output}")
    assert run_cli(monkeypatch, *given) == 42
    assert jobs.sent[0][0].endswith(f"--output {output}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run.yaml"], "--output: is missing; the job's working directory on the cluster is temporary"),
        (["run.yaml", "--output", "runs/x"], "--output: 'runs/x' is relative"),
        (["run.yaml", "--output", "~/x"], "--output: '~/x' is relative"),
        (["missing.yaml", *OUT], "config missing.yaml does not exist"),
        (["run.yaml", *OUT, "--set", "joint.rate=5"], "joint.rate: unknown key"),
        (["run.yaml", *OUT, "--set", "teachers.0.checkpoint=gone.pt"], "gone.pt does not exist"),
        (["run.yaml", *OUT, "--set", "teachers.0.checkpoint=../out.pt"], "../out.pt lies outside"),
        (
            ["run.yaml", *OUT, "--set", "tracking.uri=http://me:secret@m"],
            "tracking.uri: credentials in the URI",
        ),
        (["run.yaml", *OUT, "--extend", "nowhere"], "nowhere does not exist"),
        (["run.yaml", *OUT, "--verb", "dance"], "--verb: 'dance'; there are run, tune"),
        (["run.yaml", *OUT, "--verb", "teach"], "teacher: Field required"),
        (["run.yaml", *OUT, "--methods", "direct"], "--methods belongs to --verb compare"),
        (["run.yaml", *OUT, "--verb", "compare", "--extend", "x"], "--extend belongs to --verb run"),
        (["run.yaml", *OUT, "--verb", "compare", "--methods", "best"], "--methods: best; there are direct"),
        (["run.yaml", *OUT, "--verb", "compare", "--vary", "seed=1,2"], "--vary 'seed=1,2'"),
        (
            ["run.yaml", *OUT, "--address", "head:6379"],
            "--address: is 'head:6379'; give the cluster's job server",
        ),
        (["run.yaml", *OUT, "--address", ""], "--address: is missing, and RAY_ADDRESS is not set"),
        (["run.yaml", "--follow", "job"], "give either a CONFIG to send, or --follow JOB"),
        ([], "give either a CONFIG to send, or --follow JOB"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sent(
    project, jobs, monkeypatch, capsys, arguments, words
):
    (project.parent / "out.pt").touch()
    address = [] if "--address" in arguments else ["--address", ADDRESS]
    assert run_cli(monkeypatch, *arguments, *address) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "secret" not in captured.err
    assert jobs.sent == []


def test_too_much_is_refused_before_anything_is_sent(project, jobs, monkeypatch, capsys):
    with (project / "low.safetensors").open("ab") as file:
        file.truncate(600 * 1024**2)
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUT) == 2
    assert "low.safetensors (600.0 MiB)" in capsys.readouterr().err
    assert jobs.sent == []


def test_the_address_is_ray_address_where_that_is_a_job_server(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "https://cluster")
    assert job_server(None) == "https://cluster"
    assert job_server("http://other") == "http://other"
    for other in ("10.0.0.1:6379", "ray://head:10001", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", other)
        with pytest.raises(InputError, match=f"--address: is '{other}'"):
            job_server(None)


def test_the_command_means_on_the_cluster_what_was_given_here():
    hard = ["a=it's $HOME; rm -rf /", "taps={a: {b: 'c d'}}", "k=`x`"]
    options = {"methods": "direct,distill", "seeds": 3, "vary": ["joint.epochs=1,2", "x=y z"], "extend": None}
    job_request = JobRequest("compare", Path("my runs/a.yaml"), hard, None, options)
    words = shlex.split(command(job_request, "my runs/a.yaml", hard, "s3://b/o"))
    assert words[:5] == ["python", "-m", "ka_ray.cli", "compare", "my runs/a.yaml"]
    assert words[5:11] == [word for one in hard for word in ("--set", one)]
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
    ids=lambda one: one.verb,
)
def test_the_command_line_takes_every_command_that_is_sent(project, monkeypatch, job_request):
    """The words of the job's command are parsed by the same command line, as far as the function it calls."""
    package, overrides, output = prepare(job_request)
    words = shlex.split(command(job_request, package.config, overrides, output))
    called = []
    names = ("amalgamate", "search_widths", "measure_spectrum", "compare", "teach")

    def stop(config, *rest):
        called.append((config, *rest))
        raise InputError("far enough")

    for name in names:
        monkeypatch.setattr(f"ka_ray.{name}", stop, raising=False)
    monkeypatch.setattr(sys, "argv", words[2:])
    with pytest.raises(SystemExit) as stopped, redirect_stdout(sys.stderr):
        cli.main()
    assert stopped.value.code == 2
    assert called[0][0].output_dir == Path("/o")
    assert called[0][1:] == (() if job_request.verb != "compare" else (["direct"], 2, ["joint.epochs=1"]))


def test_a_tracking_server_is_passed_on_unless_it_shows_a_password(project, monkeypatch):
    job_request = JobRequest("run", Path("run.yaml"), [], "/o", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert job_environment()[0] == {"PYTHONUNBUFFERED": "1", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert prepare(job_request)[1] == ["tracking.uri=http://mlflow:5000"]
    configured = JobRequest("run", Path("run.yaml"), ["tracking.uri=http://other:5000"], "/o", {})
    assert prepare(configured)[1] == ["tracking.uri=http://other:5000"]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow:5000")
    environment, note = job_environment()
    assert environment == {"PYTHONUNBUFFERED": "1"}
    assert "not passed on" in note
    assert "secret" not in note
    assert prepare(job_request)[1] == []


def test_no_secret_of_this_shell_reaches_the_job(project, jobs, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "s3cret")
    assert run_cli(monkeypatch, "run.yaml", "--address", ADDRESS, *OUT) == 42
    assert "s3cret" not in repr(jobs.sent)
