"""Test local copies of remote files: each version is downloaded completely and only once."""

import multiprocessing
import os
from pathlib import Path

import pytest

from ka_ray.storage.cache import download_into, fetch_local_copies, fetch_local_copy
from ka_ray.storage.file_names import list_files
from ka_ray.storage.files import make_folder, write_text
from ka_ray.storage.uris import to_path


@pytest.fixture(params=["file", "s3"])
def remote_folder(request, tmp_path, monkeypatch) -> Path:
    """Return a remote folder, and set an empty cache folder."""
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    if request.param == "file":
        folder = to_path(f"file://{tmp_path}/remote_folder")
    else:
        folder = to_path(f"{request.getfixturevalue('s3')}/remote_folder")
    make_folder(folder)
    return folder


def test_a_local_file_is_returned_and_not_copied(tmp_path):
    assert fetch_local_copy(tmp_path / "x") == tmp_path / "x"


def test_a_copy_has_the_name_and_content_of_the_file(remote_folder):
    write_text(remote_folder / "teacher.safetensors", "weights")
    copy = fetch_local_copy(remote_folder / "teacher.safetensors")
    assert (copy.name, copy.read_text()) == ("teacher.safetensors", "weights")
    assert isinstance(os.fspath(copy), str)


def test_a_second_call_downloads_nothing(remote_folder):
    write_text(remote_folder / "x", "first")
    fetch_local_copy(remote_folder / "x").write_text("changed copy")
    assert fetch_local_copy(remote_folder / "x").read_text() == "changed copy"


def test_a_changed_file_is_fetched_again(remote_folder):
    write_text(remote_folder / "x", "first")
    old = fetch_local_copy(remote_folder / "x")
    # The new content has the same length, so that the file size does not show the change.
    write_text(remote_folder / "x", "other")
    assert fetch_local_copy(remote_folder / "x").read_text() == "other"
    assert old.read_text() == "first"  # a run that uses the old copy can go on


def test_a_missing_file_raises_file_not_found(remote_folder):
    with pytest.raises(FileNotFoundError):
        fetch_local_copy(remote_folder / "nowhere")


def test_an_interrupted_download_leaves_no_copy(remote_folder, monkeypatch):
    write_text(remote_folder / "x", "content")
    get_file = remote_folder.fs.get_file

    def fail_halfway(name: str, to: str) -> None:
        Path(to).write_text("con")
        raise RuntimeError("connection lost")

    monkeypatch.setattr(remote_folder.fs, "get_file", fail_halfway)
    with pytest.raises(OSError, match="cannot be fetched: connection lost"):
        fetch_local_copy(remote_folder / "x")
    monkeypatch.setattr(remote_folder.fs, "get_file", get_file)
    assert fetch_local_copy(remote_folder / "x").read_text() == "content"


def test_a_file_that_changes_during_the_download_is_fetched_again(remote_folder, monkeypatch):
    write_text(remote_folder / "x", "first")
    get_file = remote_folder.fs.get_file
    changes = iter(["third", "again"])

    def change_file_and_download(name: str, to: str) -> None:
        write_text(remote_folder / "x", next(changes, "again"))
        get_file(name, to)

    monkeypatch.setattr(remote_folder.fs, "get_file", change_file_and_download)
    if "file" in str(remote_folder):
        with pytest.raises(OSError, match="x cannot be fetched: it changed during each of 3 downloads"):
            fetch_local_copy(remote_folder / "x")
        return
    # On S3, two uploads of the same content count as one version.
    assert fetch_local_copy(remote_folder / "x").read_text() == "again"


def _fetch_after_barrier(uri: str, barrier, results) -> None:
    path = to_path(uri)
    barrier.wait()
    copy = fetch_local_copy(path)
    results.put((str(copy), len(copy.read_bytes()), copy.stat().st_ino))


def test_simultaneous_processes_share_one_copy(remote_folder):
    (remote_folder / "big").write_bytes(b"x" * 20_000_000)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_fetch_after_barrier, args=(f"{remote_folder}/big", barrier, results))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    copies = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert len(copies) == 1
    assert next(iter(copies))[1] == 20_000_000


def test_three_simultaneous_processes_send_one_request(s3, s3_requests):
    path = to_path(f"{s3}/once")
    path.write_bytes(b"x" * 20_000_000)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=_fetch_after_barrier, args=(str(path), barrier, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(s3_requests("GET", "/once")) == 1


def test_the_named_files_of_a_folder_are_copied_in_order(remote_folder):
    for name in ("b.arrow", "a.arrow", "done.json"):
        write_text(remote_folder / name, name)
    make_folder(remote_folder / "deeper")
    write_text(remote_folder / "deeper" / "c.arrow", "c")
    copies = fetch_local_copies(remote_folder, ["b.arrow", "a.arrow"])
    assert [copy.read_text() for copy in copies] == ["b.arrow", "a.arrow"]
    assert [fetch_local_copy(remote_folder / name) for name in ("b.arrow", "a.arrow")] == copies
    with pytest.raises(OSError, match=r"gone\.arrow does not exist"):
        [copy.read_bytes() for copy in fetch_local_copies(remote_folder, ["a.arrow", "gone.arrow"])]


def test_download_into_copies_files_and_whole_folders(remote_folder, tmp_path):
    for name in ("figures/a.png", "figures/deep/b.png", "report.md"):
        make_folder((remote_folder / name).parent)
        write_text(remote_folder / name, name)
    (tmp_path / "here").mkdir()
    copied = download_into(remote_folder / "figures", tmp_path / "here")
    assert copied == tmp_path / "here" / "figures"
    assert list_files(copied) == ["a.png", "deep/b.png"]
    assert download_into(remote_folder / "report.md", tmp_path / "here").read_text() == "report.md"
