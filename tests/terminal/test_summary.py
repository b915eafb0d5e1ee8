"""The texts of the summary."""

import sys

from ka_ray.terminal.summary import find_program


def test_find_program_returns_what_can_be_typed_here(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ka-ray").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert find_program("ka-ray") == "bin/ka-ray"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_program("ka-ray") == "ka-ray"
