"""Test the command line without training: help, completion, messages for bad input, small helpers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from ka_ray import __version__, cli
from ka_ray.verbosity import Verbosity, verbosity
from ka_ray.workflows.demo import demo_config

DEMO_CONFIG = str(demo_config())


def run_cli(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ka-ray", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_help_names_every_command(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for command in (
        "inspect",
        "init",
        "merge",
        "demo",
        "run",
        "compare",
        "teach",
        "submit",
        "evaluate",
        "predict",
        "export",
        "doctor",
    ):
        assert command in shown


def test_version_is_that_of_the_code(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"ka-ray {__version__}\n"


COMMAND_LISTING_IMPORTS = """
import sys
from ka_ray import cli

sys.argv[0] = "ka-ray"
try:
    cli.main()
finally:
    print("imported:", *sorted({"torch", "torchvision", "ray", "mlflow", "numpy"} & set(sys.modules)))
"""


def command_output(*arguments: str, **environment: str) -> list[str]:
    """Return the lines that `ka-ray` prints in its own process. The last one lists imported slow packages."""
    command = [sys.executable, "-c", COMMAND_LISTING_IMPORTS, *arguments]
    finished = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return finished.stdout.splitlines()


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_no_slow_package(option):
    assert command_output(option)[-1] == "imported:"


def test_shell_completion_completes_commands_and_options_and_imports_no_slow_package():
    def complete(line: str) -> list[str]:
        word_index = str(len(line.split(" ")) - 1)
        return command_output(_KA_RAY_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=word_index)

    assert complete("ka-ray te") == ["teach", "imported:"]
    assert complete("ka-ray run --ou") == ["--output", "imported:"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.yaml"], "config missing.yaml does not exist"),
        (["run", DEMO_CONFIG, "--extend", "nowhere"], "nowhere does not exist"),
        (["run", DEMO_CONFIG, "--extend", "."], "holds no config.json; give the folder of a finished run"),
        (["compare", "missing.yaml"], "config missing.yaml does not exist"),
        (
            ["compare", DEMO_CONFIG, "--methods", "best,direct"],
            "--methods: best; there are direct, incremental",
        ),
        (["compare", DEMO_CONFIG, "--methods", ""], "--methods: none given; there are direct, incremental"),
        (
            ["compare", DEMO_CONFIG, "--vary", "scores.rule"],
            "--vary 'scores.rule': must read key=value,value",
        ),
        (["compare", DEMO_CONFIG, "--vary", "images.size=8,16"], "--vary 'images.size=8,16'"),
        (["compare", DEMO_CONFIG, "--vary", "scores.rule=mean,conditional"], "scores.rule is 'conditional'"),
        (["compare", DEMO_CONFIG, "--vary", "joint.loss=hinge"], "joint.loss: "),
        (["compare", DEMO_CONFIG, "--set", "colour=red"], "colour: unknown key"),
        (["teach", "missing.yaml"], "config missing.yaml does not exist"),
        (["inspect", "nowhere.pt"], "nowhere.pt does not exist"),
        (["init", "a.pt", "b.pt", "--images", "nowhere"], "--images nowhere does not exist"),
        (["merge", "a.pt", "b.pt", "--images", "."], "teachers.0.from: "),
        (["merge", "a.pt", "b.pt", "--images", ".", "--hints", "x"], "--hints 'x': must read NAME=FOLDER"),
        (["predict", "nowhere", "x.png"], "nowhere does not exist; give the output"),
        (["predict", "nowhere", "x.png", "--csv", "--json"], "give either --csv or --json"),
        (["export", "nowhere", "--format", "onnx"], "nowhere does not exist; give the output"),
        (["export", "nowhere", "--format", "gguf"], "--format 'gguf': there are onnx, pt2, "),
        (["evaluate", "nowhere", "--images", "digits"], "nowhere does not exist; give the output"),
    ],
)
def test_bad_input_prints_one_message_and_exits_with_code_2(
    monkeypatch, capsys, tmp_path, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--quiet", "--json"])
def test_submit_refuses_what_it_cannot_do(monkeypatch, capsys, option):
    assert run_cli(monkeypatch, "submit", DEMO_CONFIG, option) == 2
    assert "submit shows the log of the job as it is; leave out --quiet and --json" in capsys.readouterr().err


def test_browse_prints_the_address_at_once_in_the_form_that_was_asked_for(monkeypatch, capsys):
    def browse(folder, port, on_page, notify):
        notify("moved")
        on_page("http://127.0.0.1:5000/#/x")
        shown = capsys.readouterr()
        assert json.loads(shown.out) == {"paths": {"browse": "http://127.0.0.1:5000/#/x"}}
        assert "moved" in shown.err

    monkeypatch.setattr("ka_ray.workflows.browse.browse", browse)
    assert run_cli(monkeypatch, "browse", "runs/demo", "--json") == 0


def test_zero_seeds_are_refused(monkeypatch, capsys):
    assert run_cli(monkeypatch, "compare", DEMO_CONFIG, "--seeds", "0") == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_help_of_compare_lists_all_methods():
    from ka_ray.runs.variants import COMPARED

    [option] = get_args(get_type_hints(cli.compare, include_extras=True)["methods"])[1:]
    named = option.help.removeprefix("Comma-separated: ").removesuffix(".").split(", ")
    assert named == list(COMPARED)
    page = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    assert [name for name in COMPARED if f"| `{name}` |" not in page] == ["ensemble"]


def test_doctor_names_every_check(monkeypatch, capsys):
    run_cli(monkeypatch, "doctor")
    shown = capsys.readouterr().out
    for name in ("Python", "libraries", "GPU", "shared memory", "open files", "names", "Ray", "MLflow"):
        assert f" {name} " in shown


COMMANDS = ("inspect", "init", "merge", "demo", "run", "compare", "spectrum", "tune", "teach", "submit")


@pytest.mark.parametrize("name", [*COMMANDS, "evaluate", "predict", "doctor"])
def test_every_command_takes_the_shared_options(monkeypatch, capsys, name):
    assert run_cli(monkeypatch, name, "--help") == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--quiet", "--json", "--debug"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "bad.yaml"],
        ["compare", DEMO_CONFIG, "--vary", "joint.los=mse,kl"],
        ["compare", DEMO_CONFIG, "--methods", "distil"],
        ["tune", DEMO_CONFIG, "--set", "tune.trails=3"],
        ["spectrum", "bad.yaml"],
        ["teach", "bad.yaml"],
        ["demo", "--set", "join.epochs=1"],
        ["merge", "a.pt", "b.pt", "--images", "nowhere"],
        ["merge", "a.pt", "b.pt", "--images", "."],
        ["init", "a.pt", "b.pt", "--images", "nowhere"],
    ],
)
def test_bad_input_is_refused_before_a_slow_package_is_imported(tmp_path, arguments):
    (tmp_path / "bad.yaml").write_text("name: x\nimags: {}\n")
    program = COMMAND_LISTING_IMPORTS.replace(', "numpy"', "")  # numpy takes a tenth of a second
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("arguments", [["--json", "run", "no.yaml"], ["run", "no.yaml", "--json"]])
def test_with_json_an_error_is_one_object(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"error": "config no.yaml does not exist", "exit_code": 2}
    assert shown.err == "error: config no.yaml does not exist\n"
    assert verbosity() == Verbosity()  # of this process, not of the command that has ended


@pytest.mark.parametrize("arguments", [["--debug", "run", "no.yaml"], ["run", "no.yaml", "--debug"]])
def test_with_debug_the_traceback_is_shown(monkeypatch, capsys, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, *arguments) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("error: config no.yaml does not exist\n")


def test_the_demo_config_is_found_in_a_checkout():
    assert demo_config().name == "digits.yaml"


def test_with_output_adds_an_override():
    assert cli.with_output(["seed=1"], None) == ["seed=1"]
    assert cli.with_output(None, "x") == ["output=x"]


def test_saved_samples_are_readable_images(tmp_path):
    from PIL import Image

    from ka_ray.config import DigitsImages
    from ka_ray.workflows.demo import save_samples

    paths = save_samples(DigitsImages(source="digits", split="test", size=16), tmp_path / "samples", count=3)
    assert [path.name for path in paths] == ["0_digit_4.png", "1_digit_9.png", "2_digit_4.png"]
    assert {Image.open(path).size for path in paths} == {(16, 16)}
