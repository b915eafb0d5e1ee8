"""Every code block of the documentation is tried: commands as far as the function that would do the work."""

import shlex

import click
import pytest
import typer
import yaml
from command_rules import RULES, check, options_of, run
from doc_pages import PAGES, Command, blocks, commands, inline_code

import ka_ray
from ka_ray import cli
from ka_ray.config import Config
from ka_ray.reports.report import Report
from ka_ray.reports.sections import Accuracy

SHELL, SHOWN = ("bash", ""), "text"
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = [command for block in BLOCKS if block.language in SHELL for command in commands(block)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from the imports of Ray's and MLflow's programs
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_is_accepted(stand_ins, monkeypatch, command):
    assert not {";", "&&", "|", "&", ">"} & set(command.words), "one command per line"
    check(command.words, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "ka-ray dance",
        "ka-ray run my.yaml --colour red",
        "ka-ray run missing.yaml",
        "ka-ray run my.yaml --set joint.epoch=5",
        "ka-ray compare my.yaml --methods best",
        "ka-ray submit my.yaml --output runs/relative",
        "ka-ray predict nowhere photos/1.jpg",
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
def test_a_command_that_cannot_work_is_noticed(stand_ins, monkeypatch, line):
    with pytest.raises((AssertionError, SystemExit, ValueError, TypeError, click.UsageError)):
        check(tuple(shlex.split(line)), monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_exist(page):
    app = typer.main.get_command(cli.app)
    for code in inline_code(page):
        program, *words = code.split() or [""]
        if program == "ka-ray" and words and not words[0].startswith("-"):
            assert words[0] in app.commands, code
            given = {word for word in words if word.startswith("--")}
            assert given <= options_of(app.commands[words[0]]), code
        elif program.startswith("--") and program != "--working-dir":  # the latter is Ray's
            assert program in options_of(app), code
        elif program == "make":
            assert run("make", "--dry-run", *words).returncode == 0, code


def test_every_block_is_of_a_known_kind():
    kinds = {str(block): block.language for block in BLOCKS}
    known = (*SHELL, SHOWN, "yaml", "python")
    assert {place: kind for place, kind in kinds.items() if kind not in known} == {}
    shown = [
        Command("", tuple(line.split())) for b in BLOCKS if b.language == SHOWN for line in b.text.split("\n")
    ]
    programs = {rule.split()[0] for rule in RULES}
    assert [command for command in shown if command.words[:1] and command.words[0] in programs] == []


YAML = [block for block in BLOCKS if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=str)
def test_every_yaml_block_is_a_config_or_a_part_of_one(workplace, block):
    tree = yaml.safe_load(block.text)
    whole = yaml.safe_load((workplace / "pets.yaml").read_text()) | tree
    (workplace / "block.yaml").write_text(yaml.safe_dump(whole))
    config = Config.load(workplace / "block.yaml")
    assert config.model_fields_set >= tree.keys()


PYTHON = [block for block in BLOCKS if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_python_block_runs(workplace, monkeypatch, block):
    accuracy = Accuracy.model_construct(**dict.fromkeys(Accuracy.model_fields))
    report = Report.model_construct(accuracy=accuracy)
    monkeypatch.setattr(ka_ray, "amalgamate", lambda config: report, raising=False)
    exec(compile(block.text, str(block), "exec"), {})


def test_there_is_something_to_test():
    assert len(COMMANDS) > 40
    assert len(YAML) > 3
    assert len(PYTHON) > 1
