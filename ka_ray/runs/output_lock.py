"""Only one command at a time works in an output folder; the lock of a command that died is taken over."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from ka_ray.errors import InputError
from ka_ray.runs.processes import alone_in, find_start, identify_machine, is_hidden
from ka_ray.storage.files import is_remote, make_folder, read_text, write_text
from ka_ray.terminal.streams import error_stream

LOCK = "lock.json"
"""The file in an output folder that says which command works in it; it is removed when the command ends."""

BEAT_S = 10.0
"""Seconds between two signs of life: the command changes its lock file."""

WRITING_S = 5
"""Seconds within which a process that has made its lock file has also written it."""

SILENCE_S = 60.0
"""Seconds without a sign of life after which the command of another machine counts as dead."""


@dataclass(frozen=True)
class Holder:
    """The process that works in an output folder.

    Attributes:
        host: Name of its machine, for people.
        machine: Identifies the boot of the machine and the container, in which ``pid`` has a meaning.
        pid: Its process id.
        started: When the process started, as the operating system says it: ids of processes are used again.
        since: When it took the lock, for people.
        key: A random text; two locks of one process differ.
        beat: The number of its signs of life.
    """

    host: str
    machine: str
    pid: int
    started: str
    since: str
    key: str
    beat: int = 0

    @classmethod
    def this_process(cls) -> "Holder":
        """Describe this process."""
        pid, now = os.getpid(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(socket.gethostname(), identify_machine(), pid, find_start(pid) or "", now, uuid4().hex)

    def is_alive(self) -> bool | None:
        """Return whether the process runs; None if it is of another machine, where this cannot be seen."""
        if self.machine != identify_machine():
            return None
        return None if is_hidden(self.pid) else find_start(self.pid) == self.started

    def __str__(self) -> str:
        """Name the process as messages do."""
        return f"host {self.host}, process {self.pid}, since {self.since}"


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other commands out of an output folder while the block runs.

    On a local or shared file system, exactly one of several commands gets the lock. An object store has no
    way to create a file only if it does not exist: there, two commands that start within the same second may
    both get it.

    Args:
        folder: The output folder; it is made if it does not exist.

    Raises:
        InputError: Another command works in the folder; the message names its host and process.
    """
    try:
        make_folder(folder)
        holder = _acquire(folder / LOCK)
    except InputError:
        raise
    except Exception as error:  # every file system raises its own kinds
        raise InputError(f"output {folder} cannot be written to: {error}") from None
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(folder / LOCK, holder, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        _release(folder / LOCK, holder)


def refuse_locked_folder(folder: Path) -> None:
    """Refuse an output folder in which another command of this machine works, without waiting for any lock.

    Args:
        folder: The output folder. What :func:`lock_folder` has to wait for is left to it.

    Raises:
        InputError: Another command works in the folder; the message names its host and process.
    """
    lock = folder / LOCK
    if is_remote(lock) or not lock.exists():
        return
    other = _read(lock)
    if other is not None and other.is_alive():
        raise _in_use(lock, other)


def _acquire(lock: Path) -> Holder:
    """Write the lock file, after the command that wrote an earlier one has died; return what it holds."""
    mine = Holder.this_process()
    while not _create(lock, mine):
        other = _read(lock)
        if other is None and lock.is_symlink():
            raise InputError(f"{lock} is a link to a file that is not there; delete it")
        if other is None:  # removed in the meantime
            continue
        alive = other.is_alive()
        if alive is None:
            print(
                f"output {lock.parent}: locked by {other}; waiting up to {SILENCE_S:g} s for a sign of life",
                file=sys.stderr,
                flush=True,
            )
            alive = _shows_life(lock, other)
        if alive:
            raise _in_use(lock, other)
        _remove_if_unchanged(lock, other)
    return mine


def _in_use(lock: Path, other: Holder) -> InputError:
    return InputError(
        f"output {lock.parent}: another command is working in it: {other}. Wait until it ends, stop it, or "
        "give another --output"
    )


def _create(lock: Path, holder: Holder) -> bool:
    """Write the lock file unless there is one; return whether this process has the lock."""
    text = json.dumps(asdict(holder))
    if not is_remote(lock):
        try:
            file = lock.open("x", encoding="utf-8")  # fails if the file exists, also for one of two at a time
        except FileExistsError:
            return False
        with file:
            try:
                file.write(text)
                file.flush()
            except OSError:  # a full disk
                lock.unlink()
                raise
        return True
    if lock.exists():
        return False
    write_text(lock, text)
    time.sleep(1)  # another command may have written its own at the same time: the last one has the lock
    return _read(lock) == holder


def _read(lock: Path) -> Holder | None:
    """Return who holds a lock; None if nobody does."""
    text = ""
    for _ in range(WRITING_S):
        try:
            text = read_text(lock)
            return Holder(**json.loads(text))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # its process may be about to write it
            time.sleep(1)
    if not text:  # its process died before it wrote
        lock.unlink(missing_ok=True)
        return None
    raise InputError(f"{lock} is damaged; if no command works in this folder, delete the file")


def _shows_life(lock: Path, other: Holder) -> bool:
    """Return whether another machine's process changes its lock file within the time of silence.

    The clocks of two machines may differ, so that nothing is compared with the time of the file.
    """
    limit = time.monotonic() + SILENCE_S
    while time.monotonic() < limit:
        time.sleep(min(1.0, SILENCE_S / 10))
        now = _read(lock)
        if now is None:
            return False
        if now != other:
            return True
    return False


def _remove_if_unchanged(lock: Path, dead: Holder) -> None:
    """Remove the lock of a dead process, unless another command has taken it over already."""
    if is_remote(lock):
        if _read(lock) == dead:
            lock.unlink(missing_ok=True)
        return
    # One command after the other looks and removes: between the two, another one could take the lock.
    with alone_in(lock.parent):
        if _read(lock) == dead:
            lock.unlink(missing_ok=True)


def _beat(lock: Path, holder: Holder, ended: threading.Event) -> None:
    """Update the lock file every few seconds, as a sign of life for other machines."""
    beat = 0
    while not ended.wait(BEAT_S):
        beat += 1
        try:
            now = _read(lock)
            if now is None or now.key != holder.key:
                who = now or "a person, who removed the file"
                print(f"warning: the lock of output {lock.parent} was taken by {who}", file=error_stream())
                return
            write_text(lock, json.dumps(asdict(holder) | {"beat": beat}))
        except Exception:  # a store that fails for a moment; the next beat tries again
            continue


def _release(lock: Path, holder: Holder) -> None:
    with suppress(Exception):  # a lock that stays is taken over; the result of the command counts more
        now = _read(lock)
        if now is not None and now.key == holder.key:
            lock.unlink(missing_ok=True)
