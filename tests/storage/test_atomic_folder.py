"""Test that a folder is written in one step, and that an older one is never lost."""

from pathlib import Path

import pytest

from ka_ray.storage.atomic_folder import atomic_folder


def write(folder, text):
    with atomic_folder(folder, "mark") as part:
        (part / "mark").write_text(text)


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("first", "second"):
        write(tmp_path / "export", text)
        assert (tmp_path / "export" / "mark").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["export"]


@pytest.mark.parametrize("failing", [".old", ".part"])
def test_the_older_folder_stays_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, failing):
    """The first renaming moves the older folder away, the second one puts the new folder in its place."""
    write(tmp_path / "export", "first")
    rename = Path.rename

    def fail(path, target):
        if failing in (path.suffix, Path(target).suffix) and path.suffix != ".old":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "export", "second")
    assert (tmp_path / "export" / "mark").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_older_folder_stays_if_the_block_fails(tmp_path):
    write(tmp_path / "export", "first")
    with pytest.raises(ValueError, match="wrong"), atomic_folder(tmp_path / "export", "mark"):
        raise ValueError("wrong")
    assert (tmp_path / "export" / "mark").read_text() == "first"
