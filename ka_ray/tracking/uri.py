"""Tracking URIs: whether one can work, whether a server answers there, and what an error of opening means."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ka_ray.errors import InputError, disk_full_error
from ka_ray.storage.endpoints import split_host_and_port, why_unreachable

PROBE_S = 5.0
"""Seconds for each of the two questions: does anything answer, and is it in working order? MLflow's own
attempts last four minutes."""

MAX_VERSION_BYTES = 40
"""Longest text that counts as a version."""

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433, "sqlite": None}
"""Database of a tracking URI -> its standard port; None for a file."""

ACCEPTED = "give http://HOST:5000 for a server, sqlite:////FOLDER/mlflow.db for a file, or null"

ADVICE = {
    r"Can't locate revision|database schema \(found version": "another version of MLflow has made this "
    "database, and here is {mlflow}. If that was an older one, back the database up and run `mlflow db "
    "upgrade '{uri}'`; if it was a newer one, install that here; or set another tracking.uri",
    r"file is not a database|disk image is malformed": "the file is no SQLite database, or it is damaged",
    r"unable to open database file|readonly database": "the file cannot be opened for writing",
    r"No module named|Can't load plugin": "the driver of this database is not installed: {reason}",
    r"\b40[13]\b|[Uu]nauthorized|[Ff]orbidden|[Aa]uthenticat": "the server refuses this shell's credentials; "
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN ({reason})",
}
"""Pattern in an error of MLflow, SQLAlchemy or alembic -> what to tell the user."""


def check_form(uri: str, key: str) -> None:
    """Refuse a tracking URI that cannot work, whether a server answers or not.

    Args:
        uri: The URI.
        key: The config key or variable that holds it, for messages.

    Raises:
        InputError: It is a folder, a host without ``http://``, or has a protocol that MLflow does not know.
    """
    protocol, separator, place = uri.partition("://")
    scheme = protocol.lower().partition("+")[0]
    if uri.startswith(("databricks", "uc:")):
        return
    if not separator and split_host_and_port(uri) is not None:
        raise InputError(f"{key} {uri}: is no URI; write http://{uri}, if an MLflow server is there")
    if not separator or scheme == "file":
        raise InputError(
            f"{key} {uri}: is a folder or no URI, and MLflow no longer writes to folders; {ACCEPTED}"
        )
    if scheme in ("http", "https"):
        if not _host(uri):
            raise InputError(f"{key} {uri}: names no host; {ACCEPTED}")
    elif scheme == "sqlite":
        if not place.startswith("/"):
            raise InputError(f"{key} {uri}: sqlite: takes three slashes and a file: sqlite:///{place}")
    elif scheme not in DATABASE_PORTS and protocol not in entry_points(group="mlflow.tracking_store").names:
        raise InputError(f"{key} {uri}: MLflow knows no protocol {protocol}://; {ACCEPTED}")


def check_answer(uri: str, key: str) -> None:
    """Refuse a tracking URI at which nothing answers; this takes at most about 10 seconds.

    Args:
        uri: A URI that :func:`check_form` accepts.
        key: The config key or variable that holds it, for messages.

    Raises:
        InputError: No server answers there, or its file is no database.
    """
    scheme = uri.partition("://")[0].lower().partition("+")[0]
    if scheme == "sqlite":
        return _check_sqlite_uri(uri, key)
    try:
        urlsplit(uri).port  # noqa: B018  # it is computed, and refused, at this point
    except ValueError as error:
        raise InputError(f"{key} {uri}: {error}; {ACCEPTED}") from None
    if scheme in ("http", "https"):
        problem = _why_no_server(uri)
    elif DATABASE_PORTS.get(scheme) and _is_reached_at_its_host(uri) and (host := _host(uri)):
        problem = why_unreachable(host, urlsplit(uri).port or DATABASE_PORTS[scheme] or 0, PROBE_S)
    else:
        problem = None
    if problem is not None:
        raise InputError(
            f"{key} {uri}: no tracking server answers there: {problem}. Start it, correct the URI, or set "
            "tracking.uri=null for a file in the output folder or tracking.backend=none for no tracking"
        )
    return None


def _check_sqlite_uri(uri: str, key: str) -> None:
    from sqlalchemy import make_url  # here, because importing it takes half a second

    database = make_url(uri).database
    if not database or database == ":memory:":
        return
    path = Path(database).absolute()
    try:
        path.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{key} {uri}: {error.strerror}; {ACCEPTED}") from None
    check_sqlite_file(path)
    folder = next(parent for parent in path.parents if parent.exists())  # MLflow makes missing folders
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"{key} {uri}: {folder} is no folder that can be written to; {ACCEPTED}")


def _is_reached_at_its_host(uri: str) -> bool:
    """Return whether a database is reached at the host of its URI; a query can name a socket instead."""
    parts = urlsplit(uri)
    # Without a port, the host of pyodbc is the name of a data source.
    return not parts.query and (parts.port is not None or "+pyodbc" not in parts.scheme)


def _host(uri: str) -> str | None:
    """Return the host of a URI; None if it names none, or what stands for the port is no port."""
    try:
        parts = urlsplit(uri)
        return parts.hostname if parts.port is None or parts.port > 0 else None
    except ValueError:
        return None


def _why_no_server(uri: str) -> str | None:
    """Return why no MLflow server can be used at an http or https URI; None if one answers."""
    import requests  # what MLflow's client uses, with the same variables

    parts = urlsplit(uri)
    if not requests.utils.get_environ_proxies(uri):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        problem = why_unreachable(parts.hostname or "", port, PROBE_S)
        if problem is not None:
            return problem
    try:
        answer = _ask(uri, "health")
    except requests.exceptions.SSLError as error:
        return f"its certificate is not trusted (MLFLOW_TRACKING_SERVER_CERT_PATH names another): {error}"
    except requests.exceptions.Timeout:
        return f"no answer within {PROBE_S:g} s"
    except requests.exceptions.RequestException as error:
        return f"what answers is no web server ({type(error).__name__})"
    # Other codes are left to MLflow: a proxy may hide /health, or ask for credentials that its client has.
    return f"it answers with error {answer.status_code}" if answer.status_code >= 500 else None


def _ask(uri: str, page: str) -> Any:
    """Get a page of a tracking server, with the certificates that MLflow's variables name."""
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    trusted = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True
    own = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    address, verify = f"{uri.rstrip('/')}/{page}", not insecure and trusted
    return requests.get(address, timeout=PROBE_S, verify=verify, cert=own, stream=True)


def find_server_version(uri: str) -> str | None:
    """Ask a tracking server for its version of MLflow; takes at most about 5 seconds.

    Args:
        uri: The http or https URI of the server.

    Returns:
        The version; None if the server does not tell, or asks for credentials.
    """
    try:
        answer = _ask(uri, "version")
        text = answer.raw.read(MAX_VERSION_BYTES, decode_content=True).decode()
    except Exception:  # of requests, of urllib3, or no text
        return None
    return text if answer.status_code == 200 and re.fullmatch(r"\d+(\.\d+)+([a-z.]+\d+)?", text) else None


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file, whose name may have any characters.

    Args:
        path: The absolute path of the file.

    Raises:
        InputError: The installed SQLAlchemy cannot write a URI for this name.
    """
    from sqlalchemy import URL, make_url  # here, because importing it takes half a second

    plain = f"sqlite:///{path}"
    if make_url(plain).database == str(path) and not make_url(plain).query:
        return plain
    # With the driver's name, because MLflow makes the folder of a `sqlite:///` URI, without undoing quotes.
    quoted = URL.create("sqlite+pysqlite", database=str(path)).render_as_string()
    if make_url(quoted).database != str(path):
        raise InputError(
            f"output {path.parent}: MLflow's SQLite cannot write to a folder of this name; rename it, "
            "install sqlalchemy>=2.1, or set tracking.uri"
        )
    return quoted


def check_sqlite_file(path: Path) -> None:
    """Refuse a file that exists but is no SQLite database; MLflow would try it for a minute.

    Args:
        path: The file.

    Raises:
        InputError: It is another kind of file, or cannot be read.
    """
    if not path.exists():
        return
    try:
        database = f"{path.absolute().as_uri()}?mode=rw"
        with closing(sqlite3.connect(database, uri=True, timeout=PROBE_S)) as file:
            file.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise InputError(f"the tracking database {path} cannot be opened: {error}") from None


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Turn errors of opening a tracker into ones for the user.

    Args:
        uri: The tracking URI.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of MLflow, SQLAlchemy, alembic and requests
        full = disk_full_error(error)
        if full is not None:
            raise full from error
        text = re.sub(r"\s+", " ", str(error).partition("[SQL:")[0]).strip() or type(error).__name__
        known = (advice for pattern, advice in ADVICE.items() if re.search(pattern, str(error)))
        advice = next(known, "MLflow cannot be opened: {reason}")
        told = advice.format(uri=uri, reason=text, mlflow=version("mlflow"))
        raise InputError(f"tracking.uri {uri}: {told}") from error
