"""Find out within seconds whether a server answers at a host and port, before a client tries for minutes."""

import socket
import threading
from urllib.parse import urlsplit


def why_unreachable(host: str, port: int, timeout_s: float) -> str | None:
    """Return why no connection to a host and port can be opened; None if one can.

    Args:
        host: Name or address of the host.
        port: TCP port.
        timeout_s: The longest time this may take, in seconds.
    """
    problem: list[str | None] = [f"no answer within {timeout_s:g} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=timeout_s).close()
            problem[0] = None
        except socket.gaierror:
            problem[0] = f"the host name {host!r} is unknown"
        except TimeoutError:  # keeps the sentence above
            pass
        except OSError as error:
            problem[0] = (error.strerror or str(error)).lower()
        except UnicodeError:
            problem[0] = f"{host!r} is no host name"

    # In a thread, because looking up a name has no timeout, and every address of a name has its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return problem[0]


def split_host_and_port(address: str) -> tuple[str, int] | None:
    """Split ``host:port``, or the part of a URL after ``://``; return None if it is not of this form.

    Args:
        address: The address, such as ``10.0.0.1:6379`` or ``[::1]:6379``.

    Example:
        >>> split_host_and_port("head:6379"), split_host_and_port("[::1]:80"), split_host_and_port("head")
        (('head', 6379), ('::1', 80), None)
    """
    try:
        parts = urlsplit(f"//{address.rpartition('://')[2]}")
        host, port = parts.hostname, parts.port
    except ValueError:  # a port that is no number or too large, or half of a bracket
        return None
    return None if not host or not port else (host, port)
