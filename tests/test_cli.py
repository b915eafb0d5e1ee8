import os
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest

from ka_ray import __version__, cli

DIGITS = str(cli.demo_config())


def run_cli(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["ka-ray", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_help_names_every_command(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    for command in ("demo", "run", "compare", "teach", "submit", "evaluate", "predict", "doctor"):
        assert command in shown


def test_version_is_that_of_the_code(monkeypatch, capsys):
    assert run_cli(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"ka-ray {__version__}\n"


COMMAND = """
import sys
from ka_ray import cli

sys.argv[0] = "ka-ray"
try:
    cli.main()
finally:
    print("loaded:", *sorted({"torch", "torchvision", "ray", "mlflow", "numpy"} & set(sys.modules)))
"""


def command_output(*arguments: str, **environment: str) -> list[str]:
    """What `ka-ray` prints in a process of its own; the last line names the slow imports that it made."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_nothing_slow(option):
    assert command_output(option)[-1] == "loaded:"


def test_the_shell_completes_commands_and_options_and_imports_nothing_slow():
    def complete(line: str) -> list[str]:
        place = str(len(line.split(" ")) - 1)
        return command_output(_KA_RAY_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=place)

    assert complete("ka-ray te") == ["teach", "loaded:"]
    assert complete("ka-ray run --ou") == ["--output", "loaded:"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "missing.yaml"], "config missing.yaml does not exist"),
        (["run", DIGITS, "--extend", "nowhere"], "nowhere does not exist"),
        (["run", DIGITS, "--extend", "."], "holds no config.json; give the folder of a finished run"),
        (["compare", "missing.yaml"], "config missing.yaml does not exist"),
        (["compare", DIGITS, "--methods", "best,direct"], "--methods: best; there are direct, incremental"),
        (["compare", DIGITS, "--methods", ""], "--methods: none given; there are direct, incremental"),
        (["compare", DIGITS, "--vary", "scores.rule"], "--vary 'scores.rule': must read key=value,value"),
        (["compare", DIGITS, "--vary", "images.size=8,16"], "--vary 'images.size=8,16'"),
        (["compare", DIGITS, "--vary", "scores.rule=mean,conditional"], "scores.rule is 'conditional'"),
        (["compare", DIGITS, "--vary", "joint.loss=hinge"], "joint.loss: "),
        (["compare", DIGITS, "--set", "colour=red"], "colour: unknown key"),
        (["teach", "missing.yaml"], "config missing.yaml does not exist"),
        (["predict", "nowhere", "x.png"], "nowhere holds no student.json"),
        (["evaluate", "nowhere", "--images", "digits"], "nowhere holds no student.json"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert run_cli(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_no_students_cannot_be_compared(monkeypatch, capsys):
    assert run_cli(monkeypatch, "compare", DIGITS, "--seeds", "0") == 2
    assert "--seeds" in capsys.readouterr().err


def test_the_methods_that_help_names_are_those_that_there_are():
    from ka_ray.runs.variants import COMPARED

    [option] = get_args(get_type_hints(cli.compare, include_extras=True)["methods"])[1:]
    named = option.help.removeprefix("Comma-separated: ").removesuffix(".").split(", ")
    assert named == list(COMPARED)


def test_doctor_says_what_is_there(monkeypatch, capsys):
    assert run_cli(monkeypatch, "doctor") == 0
    shown = capsys.readouterr().out
    for name in ("python=", "torch=", "ray=", "mlflow=", "cpus=", "disk_free_gib="):
        assert name in shown


def test_the_demo_config_is_found_in_a_checkout():
    assert cli.demo_config().name == "digits.yaml"


def test_output_is_an_override():
    assert cli.with_output(["seed=1"], None) == ["seed=1"]
    assert cli.with_output(None, "x") == ["output=x"]


def test_samples_are_images_that_can_be_read_again(tmp_path):
    from PIL import Image

    from ka_ray.config import DigitsImages
    from ka_ray.workflows.demo import save_samples

    paths = save_samples(DigitsImages(source="digits", split="test", size=16), tmp_path / "samples", count=3)
    assert [path.name for path in paths] == ["0_digit_4.png", "1_digit_9.png", "2_digit_4.png"]
    assert {Image.open(path).size for path in paths} == {(16, 16)}
