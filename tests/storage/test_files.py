"""Test that file operations do the same on a local disk, on a ``file://`` URI and on an S3 server."""

import errno
import multiprocessing
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest

from ka_ray.errors import InputError
from ka_ray.storage.batch_read import read_files
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import (
    atomic_file,
    exists,
    is_remote,
    make_folder,
    open_random_access,
    read_bytes,
    remove_tree,
    write_text,
)
from ka_ray.storage.uris import to_path

NUM_WRITES = 30
NUM_BYTES = 2_000_000


@pytest.fixture(params=["local", "file", "s3"])
def folder(request, tmp_path) -> Path:
    """Return a folder on one of three file systems, which does not exist yet."""
    if request.param == "local":
        return tmp_path / "folder"
    if request.param == "file":
        return to_path(f"file://{tmp_path}/folder")
    return to_path(f"{request.getfixturevalue('s3')}/deep/folder")


def test_a_written_file_can_be_read(folder):
    make_folder(folder / "a" / "b")
    write_text(folder / "a" / "b" / "note.txt", "höhe\n")
    assert (folder / "a" / "b" / "note.txt").read_text() == "höhe\n"
    assert exists(folder / "a" / "b" / "note.txt")
    assert exists(folder / "a")
    assert not exists(folder / "a" / "c")


def test_writing_leaves_no_temporary_file(folder):
    make_folder(folder)
    for text in ("one", "two"):
        write_text(folder / "note.txt", text)
    assert list_files(folder) == ["note.txt"]
    assert (folder / "note.txt").read_text() == "two"


def test_a_failing_atomic_file_block_keeps_the_old_file(folder):
    make_folder(folder)
    write_text(folder / "note.txt", "whole")

    def fail() -> None:
        with atomic_file(folder / "note.txt") as part:
            part.write_text("a part")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert list_files(folder) == ["note.txt"]
    assert (folder / "note.txt").read_text() == "whole"


def _write_repeatedly(folder: str, ready) -> None:
    for number in range(NUM_WRITES):
        with atomic_file(to_path(folder) / "big") as part:
            part.write_bytes(bytes([number]) * NUM_BYTES)
        ready.set()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_content_and_name_are_on_the_disk_before_and_after_the_rename(monkeypatch, tmp_path, scheme):
    path, events = to_path(f"{scheme}{tmp_path}/note.txt"), list[str]()
    fsync, replace = os.fsync, Path.replace

    def record_sync(descriptor: int) -> None:
        synced = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_complete = synced.is_dir() or synced.read_text() == "new"
        events.append("folder" if synced == tmp_path else f"file, complete: {is_complete}")
        fsync(descriptor)

    def record_rename(part: Path, target: Path) -> Path:
        events.append(f"renamed to {target.name}")
        return replace(part, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "replace", record_rename)
    write_text(path, "new")
    assert events == ["file, complete: True", "renamed to note.txt", "folder"]


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_is_no_error_but_a_failing_disk_is(
    monkeypatch, tmp_path, number, raises
):
    fsync = os.fsync

    def fail_on_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_on_folders)
    with pytest.raises(OSError, match="error") if raises else nullcontext():
        write_text(tmp_path / "note.txt", "new")


def test_readers_never_see_a_partly_written_file(folder):
    make_folder(folder)
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    writer = context.Process(target=_write_repeatedly, args=(str(folder), ready))
    writer.start()
    assert ready.wait(120)
    seen = set()
    while writer.is_alive() or len(seen) < 2:
        content = read_bytes(folder / "big")
        assert len(content) == NUM_BYTES
        assert content == content[:1] * NUM_BYTES
        seen.add(content[0])
        assert writer.exitcode in (None, 0)
    writer.join()
    assert (folder / "big").read_bytes()[0] == NUM_WRITES - 1


def test_files_written_by_another_process_are_seen_at_once(folder):
    make_folder(folder)
    write_text(folder / "first.txt", "x")
    assert list_files(folder) == ["first.txt"]
    assert [path.name for path in folder.iterdir()] == ["first.txt"]
    assert not exists(folder / "note.txt")
    code = "from ka_ray.storage.files import *; from ka_ray.storage.uris import to_path; "
    code += f"write_text(to_path({str(folder)!r}) / 'note.txt', 'x')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert exists(folder / "note.txt")
    assert list_files(folder) == ["first.txt", "note.txt"]
    assert sorted(path.name for path in folder.iterdir()) == ["first.txt", "note.txt"]
    assert sorted(path.name for path in folder.glob("*.txt")) == ["first.txt", "note.txt"]


def test_remove_tree_removes_nothing_else(folder):
    for name in ("tree/a/b", "tree/c", "tree_of_another"):
        make_folder((folder / name).parent)
        write_text(folder / name, "x")
    remove_tree(folder / "tree")
    remove_tree(folder / "missing")
    assert list_files(folder) == ["tree_of_another"]
    assert not exists(folder / "tree")


def test_files_are_listed_folder_by_folder(folder):
    names = ["b.png", "a/z.PNG", "a-b/a.png", "a/b/c.png", "a/notes.txt"]
    for name in names:
        make_folder((folder / name).parent)
        write_text(folder / name, name)
    assert list_files(folder) == ["a/b/c.png", "a/notes.txt", "a/z.PNG", "a-b/a.png", "b.png"]
    assert list_files(folder, {".png"}) == ["a/b/c.png", "a/z.PNG", "a-b/a.png", "b.png"]


def test_read_files_keeps_the_order_and_returns_errors(folder):
    make_folder(folder)
    names = [f"{number} [{number % 3}]*.txt" for number in range(40)]
    for name in names:
        write_text(folder / name, name)
    # Brackets and stars in these names must not be taken for patterns.
    requested = [f"{folder}/{name}" for name in [*names[30:], "nowhere", *names[:30]]]
    contents = list(read_files(requested))
    assert isinstance(contents[10], FileNotFoundError)
    assert b"".join(contents[:10] + contents[11:]).decode() == "".join(names[30:] + names[:30])
    assert list(read_files([])) == []


def test_open_random_access_reads_a_range(folder, monkeypatch):
    make_folder(folder)
    with atomic_file(folder / "numbers") as part:
        part.write_bytes(bytes(range(250)) * 4000)
    with open_random_access(folder / "numbers") as opened:
        if not is_remote(folder):
            assert opened == folder / "numbers"
            return
        opened.seek(250 * 2000 + 7)
        assert opened.read(3) == bytes([7, 8, 9])


def test_paths_can_be_pickled(folder):
    copy = pickle.loads(pickle.dumps(folder / "x"))
    assert copy == folder / "x"
    assert str(copy) == f"{folder}/x"
    assert to_path(str(copy)) == copy


def test_to_path_returns_a_pathlib_path_for_a_local_path(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert to_path("~/x") == Path("/somewhere/x")
    assert to_path("runs/x") == Path("runs/x")
    assert not is_remote(to_path("/x"))
    assert is_remote(to_path("file:///x"))
    assert str(to_path("memory://x/y/")) == "memory://x/y"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:s3cret@bucket/x",
        "https://host/x?X-Amz-Signature=s3cret",
        "https://host/x?a=b&access_token=s3cret",
        "sftp://me:s3cret@host/x",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="credentials in the URI") as error:
        to_path(uri)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("webdisk://x/y", "webdisk:// is not a protocol that fsspec knows"),
        ("simplecache::s3://x/y", "simplecache::s3:// is not a protocol"),
        ("s3://bucket/*.pt", "one file or folder"),
        ("s3://", "the URI is incomplete; write a bucket or folder after s3://"),
        ("file:///", "the URI is incomplete"),
    ],
)
def test_an_unsupported_or_incomplete_uri_is_refused(uri, message):
    with pytest.raises(InputError, match=message):
        to_path(uri)


@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs")])
def test_the_message_about_a_missing_package_names_the_extra_to_install(monkeypatch, protocol, extra):
    def missing(name: str) -> None:
        raise ImportError(f"Install {name}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=rf"{protocol}:// needs .* pip install 'ka_ray\[{extra}\]'"):
        to_path(f"{protocol}://bucket/x")


def test_exists_reports_a_store_that_cannot_be_reached(monkeypatch, tmp_path):
    path = to_path(f"file://{tmp_path}/x")

    def refuse(self, *args, **kwargs):
        raise RuntimeError("Unable to locate credentials")

    monkeypatch.setattr(type(path.fs), "exists", refuse)
    with pytest.raises(InputError, match=r"file://.*/x cannot be reached: Unable to locate credentials"):
        exists(path)


def test_no_file_system_is_imported_before_a_uri_is_used():
    code = "import sys, ka_ray.storage.files; print([m for m in ('fsspec', 's3fs') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_a_pipe_among_files_is_an_error_and_nothing_waits_for_it(tmp_path):
    (tmp_path / "full").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    content, pipe, folder = read_files([str(tmp_path / name) for name in ("full", "pipe", "")])
    assert content == b"abc"
    assert isinstance(pipe, OSError)
    assert pipe.errno == errno.EINVAL
    assert isinstance(folder, OSError)
