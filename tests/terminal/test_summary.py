"""Test how the summary names programs."""

import sys

from ka_ray.terminal.summary import find_program


def test_find_program_returns_a_relative_path_or_just_the_name_if_it_is_on_the_path(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ka-ray").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert find_program("ka-ray") == "bin/ka-ray"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_program("ka-ray") == "ka-ray"
