"""Which processes of this machine live: who holds a lock?"""

import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def identify_machine() -> str:
    """Identify this machine since its boot, and the container in which process ids are counted."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux only
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def is_hidden(pid: int) -> bool:
    """Return whether a process runs of which this user may see nothing, as where /proc hides others'.

    Args:
        pid: The id of a process of this machine.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        try:
            return not Path(f"/proc/{pid}/stat").exists() and Path("/proc/self/stat").exists()
        except PermissionError:
            return True
    return False


def find_start(pid: int) -> str | None:
    """Return when a process started, in the form of the operating system; None if there is no such process.

    Args:
        pid: The id of a process of this machine.
    """
    try:
        # The fields after the name, which is in parentheses and may hold spaces; the start is the 22nd.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        state, start = fields.split()[0], fields.split()[19]
        return None if state in "ZX" else start  # a zombie has ended
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return found.stdout.strip() or None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep the block from running in two processes at once; the operating system knows which have ended.

    Args:
        folder: A folder that all of them name.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Network file systems without locks on folders refuse: then the time between two lines has to do.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
