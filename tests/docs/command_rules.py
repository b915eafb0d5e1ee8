"""How commands of the documentation are tested: one rule for each kind of command.

Each command is parsed by its own program. Those of ka_ray run until the function that would do the work.
"""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest
import typer
from doc_pages import REPOSITORY

from ka_ray import cli
from ka_ray.config import Config

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
MAKEFILE = (REPOSITORY / "Makefile").read_text()
LOCAL_CLUSTER = REPOSITORY / "cluster" / "local.sh"


class WorkReached(Exception):
    """Raised instead of the work of a command, once everything before it has succeeded."""


def find_options(command):
    """Return every option of a command and of the commands below it."""
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(find_options(inner) for inner in getattr(command, "commands", {}).values()))


def run(*words, cwd=REPOSITORY, **environment):
    return subprocess.run(words, cwd=cwd, env=os.environ | environment, capture_output=True, text=True)


RUN_TO_THE_END = ("predict", "--version", "--help")
"""Commands that run to their end; all others stop where their work would begin."""


def assert_accepted(verb, call):
    """Call a command, and check that it accepts its input: with bad input it exits with code 2."""
    with pytest.raises(SystemExit if verb in RUN_TO_THE_END else WorkReached) as ended:
        call()
    assert verb not in RUN_TO_THE_END or ended.value.code == 0


def run_ka_ray(words, monkeypatch):
    verb = words[1]
    if verb == "--install-completion":
        # Running it would change files of the user's shell.
        assert verb in find_options(typer.main.get_command(cli.app))
        return
    assert_accepted(verb, lambda: cli.main([part for word in words[1:] for part in expand_wildcards(word)]))


def expand_wildcards(word):
    """Expand wildcards as a shell does: a pattern that matches no file is kept."""
    found = sorted(map(str, Path().glob(word))) if "*" in word else []
    return found or [word]


def run_job_script(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", list(words[1:]))
    path = REPOSITORY / words[1]
    assert_accepted(path.stem, lambda: runpy.run_path(str(path), run_name="__main__"))


def parse_benchmark(words, monkeypatch):
    """Run a benchmark until it has parsed its arguments; load the config that it names, if any."""
    path, parsed = REPOSITORY / words[1], []
    if "argparse" not in path.read_text():
        compile(path.read_text(), path, "exec")
        assert words[2:] == (), f"{words[1]} takes no arguments"
        return
    original = argparse.ArgumentParser.parse_args

    def stop(parser, *arguments):
        parsed.append(original(parser, *arguments))
        raise WorkReached

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", list(words[1:]))
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(WorkReached):
        runpy.run_path(str(path), run_name="__main__")
    if hasattr(parsed[0], "config"):
        Config.load(parsed[0].config, parsed[0].overrides)


def parse_click(command, words):
    """Parse words by a command of click without running it; return the parameters."""
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"no command {name}"
    return command.make_context(command.name, list(words)).params


def parse_ray(words, monkeypatch):
    from ray.scripts.scripts import cli as ray_cli

    parameters = parse_click(ray_cli, words[1:])
    if "entrypoint" in parameters:
        run_rule(parameters["entrypoint"], monkeypatch)


def parse_mlflow(words, monkeypatch):
    from mlflow.cli import cli as mlflow_cli

    assert parse_click(mlflow_cli, words[1:])


def check_make(words, monkeypatch):
    assert run("make", "--dry-run", *words[1:]).returncode == 0


def check_activate(words, monkeypatch):
    venv = re.search(r"^VENV := (.*)$", MAKEFILE, re.MULTILINE)[1]
    assert words[1:] == (f"{venv}/bin/activate",)


def check_pip(words, monkeypatch):
    """Check that the extras exist that the command installs."""
    [requirement] = words[2:]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", requirement)[1]
    assert set(extras.split(",")) <= PYPROJECT["project"]["optional-dependencies"].keys()


def check_local_cluster(words, monkeypatch):
    """Let the script check its arguments; then it fails, because the folder of the cluster is a file."""
    file = str(REPOSITORY / "Makefile")
    done = run("bash", str(LOCAL_CLUSTER), *words[1:], KA_RAY_CLUSTER_DIR=file)
    assert (done.returncode, file in done.stderr) == (1, True), done.stderr


def check_eval(words, monkeypatch):
    [inner] = re.fullmatch(r"\$\((.*)\)", words[1]).groups()
    run_rule(tuple(shlex.split(inner)), monkeypatch)


def check_export(words, monkeypatch):
    for assignment in words[1:]:
        assert re.search(rf"\b{assignment.partition('=')[0]}\b", LOCAL_CLUSTER.read_text())


def check_pre_commit(words, monkeypatch):
    assert run(sys.executable, "-m", "pre_commit", *words[1:], "--help").returncode == 0


RULES = {
    "ka-ray *": run_ka_ray,
    "python jobs/*": run_job_script,
    "python benchmarks/*": parse_benchmark,
    "ray *": parse_ray,
    "mlflow *": parse_mlflow,
    "make *": check_make,
    "source *": check_activate,
    "pip install *": check_pip,
    "cluster/local.sh *": check_local_cluster,
    "eval *": check_eval,
    "export *": check_export,
    "pre-commit *": check_pre_commit,
}
"""Pattern of a command -> function that tests it."""


def run_rule(words, monkeypatch):
    """Test a command by the only rule that it matches."""
    rules = [rule for rule in RULES if fnmatch(" ".join(words), rule)]
    assert len(rules) == 1, f"{words} must match one rule, but matches {rules}"
    RULES[rules[0]](tuple(words), monkeypatch)
