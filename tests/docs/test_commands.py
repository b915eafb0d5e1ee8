"""Every code block of the documentation is tested; commands run until the function that would do the work."""

import shlex
from types import SimpleNamespace

import click
import pytest
import typer
import yaml
from command_rules import RULES, find_options, run, run_rule
from doc_pages import PAGES, Command, find_blocks, find_commands, inline_code
from jsonschema import Draft202012Validator

import ka_ray
from ka_ray import cli
from ka_ray.config import Config
from ka_ray.config.json_schema import build_schema
from ka_ray.reports.report import Report
from ka_ray.reports.sections import Accuracy

SHELL_LANGUAGES, OUTPUT = ("bash", ""), "text"
BLOCKS = [block for page in PAGES for block in find_blocks(page)]
COMMANDS = [
    command for block in BLOCKS if block.language in SHELL_LANGUAGES for command in find_commands(block)
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the imports of Ray's and MLflow's programs
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_accepted(checkout_without_work, monkeypatch, command):
    assert not {";", "&&", "|", "&", ">"} & set(command.words), "one command per line"
    run_rule(command.words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "ka-ray dance",
        "ka-ray run my.yaml --colour red",
        "ka-ray run missing.yaml",
        "ka-ray run my.yaml --set joint.epoch=5",
        "ka-ray compare my.yaml --methods best",
        "ka-ray merge hf/dogs --images photos",
        "ka-ray merge hf/dogs birds.ckpt --images photos --hints cats=photos",
        "ka-ray init hf/dogs birds.ckpt --images nowhere",
        "ka-ray inspect nowhere.pt",
        "ka-ray submit my.yaml --output runs/relative",
        "ka-ray predict nowhere photos/1.jpg",
        "ka-ray export runs/pets --format gguf",
        "python jobs/amalgamate.py my.yaml --methods direct",
        "python benchmarks/tune_resume.py my.yaml --tries 3",
        "python benchmarks/digits_without_ray.py my.yaml",
        "ray job submit --working-dir . -- python jobs/amalgamate.py missing.yaml",
        "ray start --tail",
        "make dinner",
        "pip install .[dinner]",
        "source bin/activate",
        "export KA_RAY_NONSENSE=1",
        "cluster/local.sh up",
        "curl example",
    ],
)
def test_a_wrong_command_fails_its_rule(checkout_without_work, monkeypatch, line):
    with pytest.raises((AssertionError, SystemExit, ValueError, TypeError, click.UsageError)):
        run_rule(tuple(shlex.split(line)), monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_exist(page):
    app = typer.main.get_command(cli.app)
    for code in inline_code(page):
        program, *words = code.split() or [""]
        if program == "ka-ray" and words and not words[0].startswith("-"):
            assert words[0] in app.commands, code
            given = {word for word in words if word.startswith("--")}
            assert given <= find_options(app.commands[words[0]]), code
        elif program.startswith("--") and program != "--working-dir":  # the latter is Ray's
            assert program in find_options(app), code
        elif program == "make":
            assert run("make", "--dry-run", *words).returncode == 0, code


def test_every_block_has_a_known_language_and_output_contains_no_commands():
    kinds = {str(block): block.language for block in BLOCKS}
    known = (*SHELL_LANGUAGES, OUTPUT, "yaml", "python", "math")
    assert {place: kind for place, kind in kinds.items() if kind not in known} == {}
    output_lines = [
        Command("", tuple(line.split()))
        for b in BLOCKS
        if b.language == OUTPUT
        for line in b.text.split("\n")
    ]
    programs = {rule.split()[0] for rule in RULES}
    assert [command for command in output_lines if command.words[:1] and command.words[0] in programs] == []


SCHEMA = Draft202012Validator(build_schema(Config))
YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=str)
def test_every_yaml_block_is_a_valid_config_or_part_of_one(checkout, block):
    tree = yaml.safe_load(block.text)
    whole = yaml.safe_load((checkout / "pets.yaml").read_text()) | tree
    (checkout / "block.yaml").write_text(yaml.safe_dump(whole))
    config = Config.load(checkout / "block.yaml")
    assert config.model_fields_set >= tree.keys()
    assert list(SCHEMA.iter_errors(whole)) == []


PYTHON = [block for block in BLOCKS if block.language == "python" and block.page.name != "mlflow.md"]
"""Blocks of Python; tests/tracking/test_mlflow_pages.py runs those that need MLflow's server."""


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_runs(checkout, monkeypatch, block):
    accuracy = Accuracy.model_construct(**dict.fromkeys(Accuracy.model_fields))
    report = Report.model_construct(accuracy=accuracy)
    answer = SimpleNamespace(json=lambda: {"predictions": [[0.0] * 10]})
    monkeypatch.setattr("requests.post", lambda address, json: answer)  # of MLflow's server
    monkeypatch.setattr(ka_ray, "amalgamate", lambda config: report, raising=False)
    monkeypatch.setattr(ka_ray, "merge", lambda teachers, images, **overrides: report, raising=False)
    exec(compile(block.text, str(block), "exec"), {})


def test_commands_and_yaml_and_python_blocks_are_found():
    assert len(COMMANDS) > 40
    assert len(YAML) > 3
    assert len(PYTHON) > 1
