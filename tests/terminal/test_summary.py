import sys

from ka_ray.terminal import summary as console


def test_a_program_is_named_so_that_it_can_be_called_from_here(monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ka-ray").touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", "")
    assert console.find_program("ka-ray") == "bin/ka-ray"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert console.find_program("ka-ray") == "ka-ray"
