"""Tracking URIs that cannot work, servers that do not answer, and databases that MLflow cannot use."""

import re
import socket
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from ka_ray.config import TrackingConfig
from ka_ray.errors import ClusterError, InputError
from ka_ray.tracking import check_tracker, open_tracker, tracking_uri
from ka_ray.tracking import uri as uri_module
from ka_ray.tracking.uri import check_answer, check_form, check_sqlite_file, sqlite_uri, translated_errors

KEY = "tracking.uri"


@pytest.fixture(autouse=True)
def _no_server_of_the_environment(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("mlruns", "is a folder or no URI"),
        ("/data/mlruns", "is a folder or no URI"),
        ("file:///data/mlruns", "MLflow no longer writes to folders"),
        ("localhost:5000", "write http://localhost:5000"),
        ("10.0.0.1:5000/path", "write http://10.0.0.1:5000/path"),
        ("http://", "names no host"),
        ("http://[::1:5000", "names no host"),
        ("foo://host", "knows no protocol foo://"),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_a_uri_that_is_none_is_refused_with_one_that_works(uri, message, tmp_path, monkeypatch):
    with pytest.raises(InputError) as error:
        tracking_uri(TrackingConfig(uri=uri), tmp_path)
    assert str(error.value).startswith(f"tracking.uri {uri}: ")
    assert message in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(InputError, match=r"^MLFLOW_TRACKING_URI "):
        tracking_uri(TrackingConfig(), tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        *("http://host", "https://host:5000/path", "databricks", "mysql+pymysql://h/d"),
        *("sqlite:////a/b.db", "sqlite:///b.db", "sqlite+pysqlite:////b", "postgresql+psycopg2://host/db"),
    ],
)
def test_a_uri_that_mlflow_knows_is_accepted(uri):
    check_form(uri, KEY)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Answer(BaseHTTPRequestHandler):
    """A server whose answer to ``/CODE/health`` is the code."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server():
    """The address of a running web server."""
    running = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.mark.parametrize("protocol", ["http", "https", "postgresql", "mysql+pymysql", "mssql+pyodbc"])
def test_a_server_that_is_down_is_named_with_what_to_do(protocol, tmp_path):
    uri = f"{protocol}://127.0.0.1:{free_port()}/x"
    with pytest.raises(InputError) as error:
        check_tracker(TrackingConfig(uri=uri), tmp_path)
    assert f"tracking.uri {uri}: no tracking server answers there: connection refused" in str(error.value)
    assert "tracking.backend=none" in str(error.value)
    check_tracker(TrackingConfig(uri=uri, backend="none"), tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://h:abc/db",
        "postgresql://h:99999/db",
        "postgresql://[::1/db",
        f"sqlite:////tmp/{'a' * 300}",
        f"sqlite:////tmp/{'a' * 300}/x.db",
    ],
)
def test_a_uri_that_cannot_be_one_is_named(uri):
    with pytest.raises(InputError, match=rf"^{KEY} {re.escape(uri)}: "):
        check_answer(uri, KEY)


def test_an_unknown_host_and_a_silent_server_are_named(monkeypatch):
    with pytest.raises(InputError, match=r"the host name 'no\.such\.invalid' is unknown"):
        check_answer("http://no.such.invalid:5000", KEY)
    monkeypatch.setattr(uri_module, "PROBE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match=r"no answer within 0\.5 s"):
            check_answer(f"http://127.0.0.1:{silent.getsockname()[1]}", KEY)


@pytest.mark.parametrize("code", [200, 401, 403, 404])
def test_a_server_that_answers_is_left_to_mlflow(server, code):
    check_answer(f"{server}/{code}", KEY)


@pytest.mark.parametrize("code", [500, 502, 503])
def test_a_server_behind_a_gateway_that_has_failed_counts_as_down(server, code):
    with pytest.raises(InputError, match=f"it answers with error {code}"):
        check_answer(f"{server}/{code}", KEY)


@pytest.mark.parametrize("name", ["''", "' '"])
def test_an_empty_experiment_is_refused(load_config, name):
    with pytest.raises(InputError, match=rf"tracking\.experiment: {name} is empty; give a name"):
        load_config(f"tracking.experiment={name}")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database, but text. " * 100)
    for config in (TrackingConfig(), TrackingConfig(uri=f"sqlite:///{tmp_path / 'mlflow.db'}")):
        with pytest.raises(InputError, match=r"mlflow\.db cannot be opened: file is not a database"):
            check_tracker(config, tmp_path)
    with pytest.raises(InputError, match="is no folder that can be written to"):
        check_answer(f"sqlite:///{tmp_path / 'mlflow.db'}/below.db", KEY)
    check_sqlite_file(tmp_path / "missing.db")


@pytest.mark.parametrize(
    "name", ["a b", "a?b", "a#b", "a%20b", "50%", "é ü 日本", "x?y=1#z%41 é", "a&b=c;d", "q'\"q", "a:b@c"]
)
def test_the_database_lies_in_the_output_folder_whatever_its_name(tmp_path, name):
    database = tmp_path / name / "mlflow.db"
    from sqlalchemy import create_engine  # what MLflow opens a URI with

    database.parent.mkdir()
    engine = create_engine(sqlite_uri(database))
    with engine.connect() as connection:
        connection.exec_driver_sql("create table t (a int)")
    engine.dispose()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*")] == [
        Path(name),
        Path(name, "mlflow.db"),
    ]


def test_a_plain_name_has_a_plain_uri():
    assert sqlite_uri(Path("/runs/my run/mlflow.db")) == "sqlite:////runs/my run/mlflow.db"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # from MLflow itself
def test_a_run_in_a_folder_with_an_odd_name_keeps_all_its_files_there(tmp_path, monkeypatch):
    output = tmp_path / "a?b=1#c%20d é"
    output.mkdir()
    (tmp_path / "report.md").write_text("x")
    monkeypatch.chdir(tmp_path)
    with open_tracker(TrackingConfig(), "run", output, None) as tracker:
        tracker.log_params({"a": 1})
        tracker.log_artifact(tmp_path / "report.md", "folder")
    assert {path.name for path in tmp_path.iterdir()} == {output.name, "report.md"}
    assert {path.name for path in output.iterdir()} == {"mlflow.db", "mlartifacts"}
    assert len(list((output / "mlartifacts").rglob("report.md"))) == 1
    client = MlflowClient(tracker.tracking_uri)  # the URI that a report shows
    assert client.get_run(tracker.run_id).data.params == {"a": "1"}
    assert client.list_artifacts(tracker.run_id, "folder")[0].path == "folder/report.md"


OPEN = """
import sys
from pathlib import Path
from ka_ray.config import TrackingConfig
from ka_ray.errors import run_with_exit_code
from ka_ray.tracking import open_tracker
def work():
    with open_tracker(TrackingConfig(), "run", Path(sys.argv[1]), None):
        pass
sys.exit(run_with_exit_code(work))
"""


@pytest.mark.slow
def test_a_database_of_another_version_of_mlflow_is_named(tmp_path):
    """In processes of their own, because MLflow checks a database only once in a process."""

    def open_in_a_process() -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], capture_output=True, text=True)

    assert open_in_a_process().returncode == 0
    database = sqlite3.connect(tmp_path / "mlflow.db")
    database.execute("update alembic_version set version_num = 'abcdef123456'")
    database.commit()
    database.close()
    refused = open_in_a_process()
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "another version of MLflow has made this database" in line
    assert f"mlflow db upgrade 'sqlite:///{tmp_path}/mlflow.db'" in line
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MlflowException("API request failed with error code 401"), "MLFLOW_TRACKING_USERNAME"),
        (ModuleNotFoundError("No module named 'psycopg2'"), "driver of this database is not installed"),
        (RuntimeError("odd\n[SQL: select 1]"), "MLflow cannot be opened: odd"),
    ],
)
def test_an_error_of_opening_says_what_to_do(error, message):
    with pytest.raises(InputError) as translated, translated_errors("http://host"):
        raise error
    assert str(translated.value).startswith("tracking.uri http://host: ")
    assert message in str(translated.value)
    assert "[SQL" not in str(translated.value)
    assert translated.value.__cause__ is error


def test_a_full_disk_stays_a_full_disk():
    with pytest.raises(ClusterError, match="the disk is full"), translated_errors("sqlite:////x"):
        raise OSError(28, "No space left on device", "/x")


def test_a_database_that_a_query_or_a_data_source_names_is_left_to_its_driver():
    for uri in (
        "mysql+pymysql://me@localhost/db?unix_socket=/cloudsql/x",
        "postgresql://me@localhost/db?host=/var/run/postgresql",
        "mssql+pyodbc://MyDSN",
    ):
        check_answer(uri, "tracking.uri")


@pytest.mark.parametrize("port", ["abc", "99999", "${PORT}"])
def test_a_port_that_is_none_is_one_message(port):
    with pytest.raises(InputError, match="names no host"):
        check_form(f"http://mlflow:{port}", "tracking.uri")
