"""Test the files for contributors: they name files and Makefile targets that exist."""

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()


def test_the_pre_commit_hooks_run_the_targets_lint_and_types():
    repos = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    hooks = repos[0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ["make lint", "make types"]
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}
    assert "\ntest: lint\n" in MAKEFILE
    assert re.search(r"\n\t\$\(MAKE\) .* types( |\n)", MAKEFILE)  # beside the tests


def test_contributing_names_targets_of_the_makefile():
    commands = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", CONTRIBUTING, re.MULTILINE)
    named = {target for command in commands for target in command.split()}
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert {"setup", "lint", "types", "test", "test-slow", "chaos", "build", "lock"} <= named <= targets


def test_the_first_section_of_the_changelog_is_for_unreleased_changes():
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    assert changelog.startswith("# Changelog\n")
    assert re.findall(r"^## (.*)", changelog, re.MULTILINE)[0] == "[Unreleased]"


def test_contributing_names_files_that_exist():
    named = re.findall(r"`((?:ka_ray|tests|jobs|cluster)/[\w/.]*)`", CONTRIBUTING)
    assert "ka_ray/amalgamation/label_sets.py" in named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []
