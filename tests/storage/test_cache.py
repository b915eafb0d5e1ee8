"""Local copies of remote files: fetched once a version, whole, however many ask at once."""

import multiprocessing
import os
from pathlib import Path

import pytest

from ka_ray.storage.cache import download_into, fetch_local_copies, fetch_local_copy
from ka_ray.storage.files import list_files, make_folder, write_text
from ka_ray.storage.uris import to_path


@pytest.fixture(params=["file", "s3"])
def place(request, tmp_path, monkeypatch) -> Path:
    """A remote folder, and an empty cache."""
    monkeypatch.setenv("KA_RAY_CACHE", str(tmp_path / "cache"))
    if request.param == "file":
        folder = to_path(f"file://{tmp_path}/place")
    else:
        folder = to_path(f"{request.getfixturevalue('s3')}/place")
    make_folder(folder)
    return folder


def test_a_local_file_is_its_own_copy(tmp_path):
    assert fetch_local_copy(tmp_path / "x") == tmp_path / "x"


def test_a_copy_has_the_name_and_the_content(place):
    write_text(place / "teacher.safetensors", "weights")
    copy = fetch_local_copy(place / "teacher.safetensors")
    assert (copy.name, copy.read_text()) == ("teacher.safetensors", "weights")
    assert isinstance(os.fspath(copy), str)


def test_the_second_call_fetches_nothing(place):
    write_text(place / "x", "first")
    fetch_local_copy(place / "x").write_text("as it lies here")
    assert fetch_local_copy(place / "x").read_text() == "as it lies here"


def test_what_has_changed_is_fetched_anew(place):
    write_text(place / "x", "first")
    old = fetch_local_copy(place / "x")
    write_text(place / "x", "other")  # as long: the size alone does not tell them apart
    assert fetch_local_copy(place / "x").read_text() == "other"
    assert old.read_text() == "first"  # who reads the old copy still may


def test_what_is_not_there_is_an_error_of_files(place):
    with pytest.raises(FileNotFoundError):
        fetch_local_copy(place / "nowhere")


def test_a_copy_that_breaks_off_is_not_there(place, monkeypatch):
    write_text(place / "x", "content")
    get_file = place.fs.get_file

    def half(name: str, to: str) -> None:
        Path(to).write_text("con")
        raise RuntimeError("connection lost")

    monkeypatch.setattr(place.fs, "get_file", half)
    with pytest.raises(OSError, match="cannot be fetched: connection lost"):
        fetch_local_copy(place / "x")
    monkeypatch.setattr(place.fs, "get_file", get_file)
    assert fetch_local_copy(place / "x").read_text() == "content"


def test_what_changes_while_it_is_fetched_is_fetched_again(place, monkeypatch):
    write_text(place / "x", "first")
    get_file = place.fs.get_file
    changes = iter(["third", "again"])

    def changed(name: str, to: str) -> None:
        write_text(place / "x", next(changes, "again"))
        get_file(name, to)

    monkeypatch.setattr(place.fs, "get_file", changed)
    if "file" in str(place):
        with pytest.raises(OSError, match="changes again and again"):
            fetch_local_copy(place / "x")
        return
    assert fetch_local_copy(place / "x").read_text() == "again"  # the same content is the same version there


def _copy(where: str, barrier, results) -> None:
    path = to_path(where)
    barrier.wait()
    copy = fetch_local_copy(path)
    results.put((str(copy), len(copy.read_bytes()), copy.stat().st_ino))


def test_processes_that_ask_at_once_share_one_copy(place):
    (place / "big").write_bytes(b"x" * 20_000_000)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    asking = [context.Process(target=_copy, args=(f"{place}/big", barrier, results)) for _ in range(3)]
    for process in asking:
        process.start()
    told = {results.get(timeout=120) for _ in asking}
    for process in asking:
        process.join()
    assert len(told) == 1
    assert next(iter(told))[1] == 20_000_000


def test_three_processes_ask_the_server_once(s3, s3_requests):
    path = to_path(f"{s3}/once")
    path.write_bytes(b"x" * 20_000_000)
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    asking = [context.Process(target=_copy, args=(str(path), barrier, results)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join()
    assert len(s3_requests("GET", "/once")) == 1


def test_of_a_folder_the_named_files_are_copied_in_their_order(place):
    for name in ("b.arrow", "a.arrow", "done.json"):
        write_text(place / name, name)
    make_folder(place / "deeper")
    write_text(place / "deeper" / "c.arrow", "c")
    copies = fetch_local_copies(place, ["b.arrow", "a.arrow"])
    assert [copy.read_text() for copy in copies] == ["b.arrow", "a.arrow"]
    assert [fetch_local_copy(place / "b.arrow"), fetch_local_copy(place / "a.arrow")] == copies
    with pytest.raises(OSError, match="gone"):
        [copy.read_bytes() for copy in fetch_local_copies(place, ["a.arrow", "gone.arrow"])]


def test_a_folder_is_copied_whole(place, tmp_path):
    for name in ("figures/a.png", "figures/deep/b.png", "report.md"):
        make_folder((place / name).parent)
        write_text(place / name, name)
    (tmp_path / "here").mkdir()
    copied = download_into(place / "figures", tmp_path / "here")
    assert copied == tmp_path / "here" / "figures"
    assert list_files(copied) == ["a.png", "deep/b.png"]
    assert download_into(place / "report.md", tmp_path / "here").read_text() == "report.md"
