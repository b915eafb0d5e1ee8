"""Test folders of caches: they are made private, and those that others could have filled are refused."""

import os
from pathlib import Path

import pytest

from ka_ray.errors import InputError
from ka_ray.storage import files
from ka_ray.storage.cache import download_into, fetch_local_copy
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import cache_folder
from ka_ray.storage.private_folder import make_private_folder
from ka_ray.storage.uris import to_path


def mode_of(folder: Path) -> int:
    return folder.lstat().st_mode & 0o777


@pytest.fixture(params=["temporary", "configured"])
def parent(request, monkeypatch, tmp_path) -> Path:
    """The folder in which the cache is made: the system's temporary one, or that of the variable."""
    monkeypatch.delenv("KA_RAY_CACHE", raising=False)
    if request.param == "configured":
        monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path))
    else:
        monkeypatch.setattr(files, "gettempdir", lambda: str(tmp_path))
    return tmp_path


def test_the_cache_is_a_private_folder_from_its_first_moment(parent, monkeypatch):
    calls = []
    mkdir = os.mkdir
    monkeypatch.setattr(
        os, "mkdir", lambda path, mode=0o777: calls.append((Path(path).name, mode)) or mkdir(path, mode)
    )
    old = os.umask(0)
    try:
        folder = cache_folder()
    finally:
        os.umask(old)
    assert (folder.parent, mode_of(folder), calls[-1]) == (parent, 0o700, (folder.name, 0o700))
    assert cache_folder() == folder


def test_a_cache_of_another_user_is_refused(parent, monkeypatch):
    folder, user = cache_folder(), os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    folder.rename(parent / f"ka_ray-{user + 1}")
    with pytest.raises(InputError, match="belongs to someone else; remove it, or set KA_RAY_CACHE"):
        cache_folder()


@pytest.mark.parametrize("target", ["folder", "missing"])
def test_a_link_is_refused_and_nothing_is_made_where_it_leads(parent, tmp_path, target):
    if target == "folder":
        (parent / "folder").mkdir(mode=0o700)
    (parent / f"ka_ray-{os.getuid()}").symlink_to(parent / target)
    with pytest.raises(InputError, match="is no folder, but a link or a file"):
        cache_folder()
    assert not (parent / "missing").exists()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o770)
    with pytest.raises(InputError, match=r"can be written to by others \(its mode is 770\); do this"):
        make_private_folder(tmp_path / "x", "do this")


def test_a_folder_that_others_may_only_read_becomes_private(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x").chmod(0o755)
    assert mode_of(make_private_folder(tmp_path / "x", "")) == 0o700


@pytest.mark.parametrize("key", ["../../outside", "a/../../outside", "./inside"])
def test_keys_of_objects_do_not_lead_out_of_a_folder(tmp_path, key):
    """An object store has no folders, so any text is a key."""
    source = to_path("memory://bucket/source")
    source.fs.store.clear()
    source.fs.pipe_file("/bucket/source/good", b"good")
    source.fs.store[f"/bucket/source/{key}"] = source.fs.store["/bucket/source/good"]
    target = tmp_path / "deep" / "folder"
    target.mkdir(parents=True)
    with pytest.raises(InputError, match=r"is no name of a file in it"):
        list_files(source)
    with pytest.raises(InputError, match=r"is no name of a file in it"):
        download_into(source, target)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_object_without_a_file_name_is_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path))
    path = to_path("memory://bucket/x")
    monkeypatch.setattr("ka_ray.storage.cache.get_filesystem", lambda path: (path.fs, "/bucket/.."))
    monkeypatch.setattr(path.fs, "info", lambda name: {"size": 1})
    with pytest.raises(OSError, match="names no file"):
        fetch_local_copy(path)


def test_a_cache_that_cannot_be_made_is_one_message(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be made: .*set KA_RAY_CACHE to a folder of yours"):
        cache_folder()
