"""Checks of `ka-ray doctor` that ask others: Ray, the tracking server, and the names of hosts."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from packaging.version import Version

from ka_ray.config import RayConfig, TrackingConfig
from ka_ray.distributed.ray_address import REFUSED, find_cluster, find_version
from ka_ray.errors import InputError
from ka_ray.runs.findings import Finding, finding_of_error
from ka_ray.storage.endpoints import split_host_and_port
from ka_ray.tracking import check_tracker, tracking_uri
from ka_ray.tracking.uri import find_server_version

NAME_S = 4.0
"""Seconds for the look-up of all names of hosts."""


def check_ray(config: RayConfig) -> Finding:
    """Check that the Ray cluster which a run would use answers, has this version, and accepts our token.

    Args:
        config: The config's ``ray`` section.
    """
    here = version("ray")
    try:
        address = find_cluster(config)
    except InputError as error:
        return finding_of_error("Ray", error)
    if address.starts_here:
        return Finding("Ray", "ok", f"{here}; no cluster is named, so Ray starts on this machine")
    token = "with a token" if os.environ.get("RAY_AUTH_MODE") == "token" else "without a token"
    there = find_version(address.value) if split_host_and_port(address.value) else None
    if there == REFUSED:
        return Finding("Ray", "ok", f"{address} asks for a token, which Ray finds itself")
    return Finding("Ray", "ok", f"{address} answers {token}, and runs {there or here}, as here")


def check_tracking(config: TrackingConfig, output: Path) -> Finding:
    """Check that the tracking server answers, and that its version suits the client's.

    Args:
        config: The config's ``tracking`` section.
        output: The output folder.
    """
    here = version("mlflow")
    try:
        check_tracker(config, output)
        uri = tracking_uri(config, output)
    except InputError as error:
        return finding_of_error("MLflow", error)
    if config.backend == "none":
        return Finding("MLflow", "ok", "tracking.backend: none, so runs are not tracked")
    if uri is None:
        return Finding("MLflow", "ok", f"{here}; no server is named, so a run writes {output / 'mlflow.db'}")
    there = find_server_version(uri) if uri.startswith(("http://", "https://")) else here
    if there is None:
        return Finding("MLflow", "ok", f"{uri} answers, but does not tell its version; here is {here}")
    found = f"{uri} answers, version {there}, here is {here}"
    theirs, ours = Version(there), Version(here)
    if theirs.major != ours.major:
        return Finding("MLflow", "error", found, f"install mlflow=={there} here, or the same there")
    if theirs < ours:
        advice = f"install mlflow=={there} here if calls fail, or upgrade the server"
        return Finding("MLflow", "warning", f"the server is older: {found}", advice)
    return Finding("MLflow", "ok", found)


def named_hosts(*addresses: str | None) -> dict[str, str]:
    """Return the hosts in addresses of servers, and of this machine: host -> what names it.

    Args:
        addresses: URIs, or ``HOST:PORT``; None and others, such as files, name no host.

    Example:
        >>> [host for host in named_hosts("http://tracker:5000", "head:6379", "sqlite:////a.db", None)][1:]
        ['tracker', 'head']
    """
    hosts = {socket.gethostname(): "this machine"}
    for address in filter(None, addresses):
        host = urlsplit(address).hostname if "://" in address else (split_host_and_port(address) or [""])[0]
        scheme = address.partition("://")[0] if "://" in address else ""
        if host and not scheme.startswith(("sqlite", "s3", "gs", "gcs", "az", "abfs", "hf")):
            hosts.setdefault(host, address)
    return hosts


def check_names(
    hosts: dict[str, str], look_up: Callable[[str], object] = lambda host: socket.getaddrinfo(host, None)
) -> Finding:
    """Check that names of hosts resolve; takes at most :data:`NAME_S` seconds.

    Args:
        hosts: Host -> what names it.
        look_up: Looks a name up; raises OSError if that fails.
    """
    failed = dict.fromkeys(hosts, f"no answer within {NAME_S:g} s")

    def ask(host: str) -> None:
        try:
            look_up(host)
            failed.pop(host, None)
        except (OSError, UnicodeError) as error:
            failed[host] = getattr(error, "strerror", None) or str(error)

    run_at_once([partial(ask, host) for host in hosts], NAME_S)
    wrong = dict(failed)
    if not wrong:
        return Finding("names", "ok", f"resolved: {', '.join(hosts)}")
    found = ", ".join(f"{host} ({hosts[host]}): {why}" for host, why in wrong.items())
    advice = "correct the address, or add the name to DNS or /etc/hosts"
    # Ray works with the address of this machine; only other machines need its name.
    own = all(hosts[host] == "this machine" for host in wrong)
    return Finding("names", "warning" if own else "error", f"unknown: {found}", advice)


def run_at_once(calls: Iterable[Callable[[], None]], timeout_s: float) -> None:
    """Run functions at the same time, and leave those that take longer.

    Args:
        calls: The functions, which may go on in the background.
        timeout_s: The longest time this may take, in seconds.
    """
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
