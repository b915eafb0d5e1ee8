"""Test what a report says on how to repeat its run: the config, the versions and the commit."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from ka_ray import __version__
from ka_ray.config import Config
from ka_ray.runs.origin import describe_origin, find_commit
from ka_ray.runs.output_folder import prepare_output_dir

DIGITS = Path(__file__).parents[2] / "jobs" / "configs" / "digits.yaml"


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("1")
    git(folder, "add", "code.py")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_the_config_in_a_report_is_that_of_the_run(tmp_path: Path) -> None:
    config = Config.load(DIGITS, [f"output={tmp_path}/run", "tracking.backend=none", "joint.epochs=7"])
    origin = describe_origin(prepare_output_dir(config), config.name)
    saved = tmp_path / "digits.yaml"
    assert origin.command == "ka-ray run digits.yaml --output runs/digits_again"
    saved.write_text(origin.config, encoding="utf-8")
    assert Config.load(saved) == config


def test_versions_are_those_of_the_code_that_runs(tmp_path: Path) -> None:
    config = Config.load(DIGITS, [f"output={tmp_path}/run", "tracking.backend=none"])
    versions = describe_origin(prepare_output_dir(config), config.name).versions
    assert versions["ka_ray"] == __version__
    assert torch.__version__.startswith(versions["torch"].split("+")[0])
    assert versions["ray"] == version("ray")


def test_the_commit_is_that_of_the_checkout_and_says_if_files_were_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")
    assert find_commit(checkout / "code.py") == commit
    (checkout / "code.py").write_text("2")
    assert find_commit(checkout / "code.py") == f"{commit}-dirty"


def test_an_installed_package_has_no_commit_even_inside_of_a_checkout(checkout: Path, tmp_path: Path) -> None:
    installed = checkout / ".venv" / "ka_ray" / "code.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("1")
    assert find_commit(installed) is None
    (tmp_path / "code.py").write_text("1")
    assert find_commit(tmp_path / "code.py") is None


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_commit(checkout / "code.py") is None
