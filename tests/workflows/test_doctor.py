"""`ka-ray doctor`: all checks are run, none stops the others, and errors are the exit code."""

import json
import time

import pytest

from ka_ray import cli
from ka_ray.runs.findings import Finding
from ka_ray.workflows import doctor
from ka_ray.workflows.doctor import diagnose, list_checks, read_config


def run_doctor(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", *arguments])
    return ended.value.code


def fail():
    raise RuntimeError("a bug")


@pytest.fixture
def checks(monkeypatch):
    """Replace the checks, and return the mapping that the test can change."""
    found = {
        "GPU": lambda: Finding("GPU", "ok", "none"),
        "disk": lambda: Finding("disk", "warning", "nearly full " + "x " * 60, "free some space"),
    }
    monkeypatch.setattr(doctor, "list_checks", lambda config: found)
    monkeypatch.setenv("COLUMNS", "80")
    return found


def test_warnings_are_no_failure_and_errors_are(checks, capsys):
    assert run_doctor() == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0] == "ok      GPU               none"
    assert "        to mend it:       free some space" in shown.splitlines()
    assert max(map(len, shown.splitlines())) <= 80
    checks["Ray"] = lambda: Finding("Ray", "error", "no cluster answers", "start it")
    assert run_doctor() == 1


def test_with_json_and_quiet(checks, capsys):
    assert run_doctor("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert found["checks"][0] == {"name": "GPU", "state": "ok", "found": "none", "advice": ""}
    assert run_doctor("--quiet") == 0
    assert "GPU" not in capsys.readouterr().out


def test_a_check_that_fails_or_hangs_stops_no_other(checks, monkeypatch):
    monkeypatch.setattr(doctor, "TIMEOUT_S", 1.0)
    checks |= {"bug": fail, "hangs": lambda: time.sleep(60)}
    found = {finding.name: finding for finding in diagnose(None)}
    assert (found["bug"].state, "RuntimeError: a bug" in found["bug"].found) == ("warning", True)
    assert (found["hangs"].state, found["hangs"].found) == ("error", "no result within 1 s")
    assert found["disk"].state == "warning"


def test_a_config_chooses_what_is_checked(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = tmp_path / "teach.yaml"
    path.write_text(
        "name: x\nimages: {source: digits}\nray: {address: 'no.such.host.invalid:6379'}\n"
        "teacher: {name: a, network: plain, classes: [digit_0, digit_1], training: {epochs: 1}}\n"
    )
    config = read_config(str(path), [f"output={tmp_path}/out", "tracking.uri=http://127.0.0.1:9"])
    checks = list_checks(config)
    assert str(tmp_path) in checks["output folder"]().found
    assert "no.such.host.invalid" in checks["names"]().found
    assert checks["Ray"]().state == "error"
    assert "http://127.0.0.1:9" in checks["MLflow"]().found
