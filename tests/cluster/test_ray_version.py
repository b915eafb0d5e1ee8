"""Test that the releases of Ray that may be installed are those that are tested, and ask for a token."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
RAY = next(
    requirement
    for requirement in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    )
    if requirement.name == "ray"
)


def test_the_locked_and_the_installed_release_are_allowed():
    (locked,) = re.findall(r"^ray==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert RAY.specifier.contains(locked)
    assert RAY.specifier.contains(version("ray"))


def test_releases_that_are_not_tested_are_not_allowed():
    """Those before 2.59 start clusters without a token unless RAY_AUTH_MODE says otherwise."""
    major, minor = map(int, version("ray").split(".")[:2])
    for other in (f"{major}.{minor - 1}.0", f"{major}.{minor + 1}.0", "2.55.0", "2.58.1"):
        assert not RAY.specifier.contains(other), other
