"""Machines that cannot read are told from files that are missing: tried again, then named."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ka_ray.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN, InputError, ReadError, user_message
from ka_ray.images.cells import or_raise
from ka_ray.storage import read_errors
from ka_ray.storage.batch_read import read_files, read_ranges
from ka_ray.storage.read_errors import is_fault_of_machine, iterate_again, read_again


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited; none are."""
    waited: list[float] = []
    monkeypatch.setattr(read_errors.time, "sleep", waited.append)
    return waited


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[Path]]:
    """Return a function that lets opening fail with a number, so many times; it returns the attempts."""
    open_file = Path.open

    def fail(number: int, times: int) -> list[Path]:
        attempts: list[Path] = []

        def fail_first(path: Path, *arguments: Any, **keywords: Any) -> Any:
            attempts.append(path)
            if len(attempts) <= times:
                raise OSError(number, os.strerror(number), str(path))
            return open_file(path, *arguments, **keywords)

        monkeypatch.setattr(Path, "open", fail_first)
        return attempts

    return fail


@pytest.mark.parametrize(
    ("number", "kind", "exit_code", "words"),
    [
        (errno.EIO, ReadError, EXIT_TRY_AGAIN, "after 3 attempts: .* input/output error$"),
        (errno.ESTALE, ReadError, EXIT_TRY_AGAIN, "stale file handle.*mount the file system again"),
        (errno.EMFILE, ReadError, EXIT_TRY_AGAIN, "too many open files; raise the limit .ulimit -n"),
        (errno.ENXIO, ReadError, EXIT_TRY_AGAIN, "No such device or address"),
        (errno.EACCES, InputError, EXIT_BAD_INPUT, "permission denied; let the user that runs ka_ray"),
    ],
)
def test_what_is_no_fault_of_the_file_is_tried_again_and_ends_with_its_own_words(
    tmp_path: Path, failing: Any, waits: list[float], number: int, kind: Any, exit_code: int, words: str
) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    attempts = failing(number, 99)
    (content,) = read_files([f"{tmp_path}/a.png"])
    assert len(attempts) == 3
    assert waits == list(read_errors.WAITS_S)
    with pytest.raises(kind, match=words) as error:
        or_raise(content, f"{tmp_path}/a.png")
    assert str(error.value).startswith(f"{tmp_path}/a.png cannot be read")
    assert user_message(error.value) == (str(error.value), exit_code)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ECONNRESET])
def test_what_passes_is_read(tmp_path: Path, failing: Any, number: int) -> None:
    (tmp_path / "a.png").write_bytes(b"0123456789")
    failing(number, 2)
    assert list(read_files([f"{tmp_path}/a.png"], 3)) == [b"012"]
    failing(number, 2)
    assert list(read_ranges(f"{tmp_path}/a.png", [(2, 3), (8, 5)])) == [b"234", b"89"]


@pytest.mark.parametrize("name", ["gone.png", "folder", "a.png/below", "x" * 300, "zero\0byte.png"])
def test_a_missing_file_is_not_tried_again_and_is_an_unreadable_image(
    tmp_path: Path, waits: list[float], name: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").write_bytes(b"a")
    (content,) = read_files([f"{tmp_path}/{name}"])
    assert or_raise(content, name) == b""
    assert waits == []


def test_a_disk_that_fails_is_named() -> None:
    """The memory of a process is a file that opens, and whose first byte cannot be read."""
    (content,) = read_files(["/proc/self/mem"])
    with pytest.raises(ReadError, match="input/output error"):
        or_raise(content, "a.png")


def test_a_process_with_too_many_open_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        (content,) = read_files([f"{tmp_path}/a.png"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(ReadError, match="too many open files"):
        or_raise(content, "a.png")


def test_errors_without_a_number_are_about_the_content() -> None:
    assert not is_fault_of_machine(OSError("image file is truncated"))
    assert not is_fault_of_machine(FileNotFoundError("s3://bucket/a.png"))
    assert not is_fault_of_machine(ValueError("not an image file"))
    assert is_fault_of_machine(PermissionError("Access Denied"))


def test_the_client_of_a_server_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    class ClientResponseError(Exception):
        """As aiohttp raises it, which is no OSError."""

    def refuse(self: Any, path: str, **keywords: Any) -> bytes:
        raise ClientResponseError("503, Service Unavailable")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", refuse)
    (content,) = read_files(["memory://photos/a.png"])
    with pytest.raises(ReadError, match=r"input/output error .ClientResponseError: 503, Service Unavailable"):
        or_raise(content, "a.png")


def test_an_iterator_goes_on_behind_what_it_has_yielded() -> None:
    failures = [4, 4, 2, 0]

    def start() -> Any:
        fails_at = failures.pop()
        for number in range(4):
            if number == fails_at:
                raise OSError(errno.EIO, "Input/output error")
            yield number

    assert list(iterate_again(start)) == [0, 1, 2, 3]
    assert failures == [4]


def test_the_last_error_is_raised_as_it_is() -> None:
    def read() -> bytes:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(OSError, match="Stale file handle"):
        read_again(read)
    with pytest.raises(OSError, match="Stale file handle"):
        list(iterate_again(lambda: iter([read()])))
