"""`ka-ray browse`: show a finished run in MLflow, on this machine alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from ka_ray.errors import InputError
from ka_ray.storage.files import exists, is_remote, read_json
from ka_ray.tracking.moved import DATABASE, follow_moved_folder
from ka_ray.tracking.pages import experiment_page, run_page
from ka_ray.tracking.uri import check_sqlite_file, sqlite_uri

HOST = "127.0.0.1"
"""Only programs of this machine reach the server: MLflow asks nobody for a password."""

START_S = 120.0
"""Seconds that MLflow may take to start; it takes about ten."""

RUN_FILES = "mlflow_*.json"
"""The files in an output folder with the ids of its runs, one for each command that was used with it."""


def browse(
    folder: Path, port: int | None, on_page: Callable[[str], None], notify: Callable[[str], None]
) -> None:
    """Serve the runs in an output folder to a browser until Ctrl-C.

    Args:
        folder: The output folder of a run that was tracked there; it may have been moved.
        port: The port to listen on; None: the first free one from 5000.
        on_page: Called with the address of the page.
        notify: Called with lines of text for the user.

    Raises:
        InputError: The folder holds no runs of MLflow, the port is taken, or the server does not start.
    """
    if is_remote(folder) or not exists(folder / DATABASE):
        raise InputError(
            f"{folder} holds no {DATABASE}: its run was tracked by a server, or not at all; report.md in it "
            "says where"
        )
    check_sqlite_file(folder / DATABASE)
    if follow_moved_folder(folder):
        notify(f"{folder} was moved: the paths in its {DATABASE} are corrected")
    # Without this, a plain `kill` would leave the server behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with serve(folder, _find_port(port)) as (address, server):
        on_page(_find_page(folder, address))
        notify("Ctrl-C ends it")
        try:
            code = server.wait()
        except KeyboardInterrupt:
            return
    raise InputError(f"MLflow's server at {address} has ended with code {code}")


@contextmanager
def serve(folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run MLflow's server for the database of an output folder while the block runs.

    Args:
        folder: The output folder.
        port: A free port.

    Yields:
        The address of the server and its process, once it answers.

    Raises:
        InputError: It does not start.
    """
    address, uri = f"http://{HOST}:{port}", sqlite_uri(folder.absolute() / DATABASE)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--workers", "1"]
    command += ["--host", HOST, "--port", str(port)]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    # MLflow makes folders in the folder it starts in, and its workers are processes of one group.
    with TemporaryDirectory() as temporary, (Path(temporary) / "log").open("w+", encoding="utf-8") as log:
        server = subprocess.Popen(
            command, cwd=temporary, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(server, address, Path(log.name))
            yield address, server
        finally:
            _end(server)


def _wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Wait until a server answers."""
    for _ in range(int(START_S / 0.2)):
        if server.poll() is not None:
            break
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])
    raise InputError(f"MLflow's server does not start at {address}:\n{last}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(timeout=10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _find_port(port: int | None) -> int:
    """Return the port that was asked for, or the first free one from 5000, or any."""
    for candidate in [port] if port is not None else [*range(5000, 5020), 0]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, candidate))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise InputError(f"--port {port}: another program uses it; give another, or none for a free one")


def _find_page(folder: Path, address: str) -> str:
    """Return the page of the run that was tracked last in an output folder, or that of all its runs."""
    files = sorted(folder.glob(RUN_FILES), key=lambda file: file.stat().st_mtime, reverse=True)
    for run_id in filter(None, (read_json(file).get("run_id") for file in files)):
        answer = requests.get(f"{address}/api/2.0/mlflow/runs/get", {"run_id": run_id}, timeout=60)
        if answer.ok:
            return run_page(address, answer.json()["run"]["info"]["experiment_id"], run_id)
    return experiment_page(address)
