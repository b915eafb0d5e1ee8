"""Which Ray a run connects to: what answers at an address, which addresses are refused, and how soon."""

import socket
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest
import ray
from ray.core.generated.gcs_service_pb2 import CheckAliveReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)
from ray.exceptions import AuthenticationError

from ka_ray.config import RayConfig
from ka_ray.distributed import ray_address
from ka_ray.distributed.opening_errors import opening_error
from ka_ray.distributed.ray_address import START_HERE, find_cluster
from ka_ray.errors import ClusterError, InputError


@pytest.fixture(autouse=True)
def no_running_ray(monkeypatch, tmp_path):
    """Let Ray look for a running cluster in an empty temporary folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(ray_address, "find_gcs_addresses", set)  # those of other programs on this machine


class Head(NodeInfoGcsServiceServicer):
    """The part of a head that tells the version of Ray; with `code`, it refuses to."""

    def __init__(self, version: str, code: grpc.StatusCode | None = None) -> None:
        self.version, self.code = version, code

    def CheckAlive(self, request, context):
        if self.code is not None:
            context.abort(self.code, "no")
        return CheckAliveReply(ray_version=self.version)


@pytest.fixture
def start_head():
    """Return a function that starts a head and returns its address."""
    servers = []

    def start(version: str = ray.__version__, code: grpc.StatusCode | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(1))
        add_NodeInfoGcsServiceServicer_to_server(Head(version, code), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_head_of_the_same_version_is_used(start_head, monkeypatch):
    address = start_head()
    assert find_cluster(RayConfig(address=address)).value == address
    monkeypatch.setenv("RAY_ADDRESS", address)
    found = find_cluster(RayConfig(num_cpus=1))  # a config may travel: a cluster has its own CPUs
    assert (found.value, found.starts_here, str(found)) == (address, False, f"RAY_ADDRESS {address}")
    assert find_cluster(RayConfig(address=START_HERE)).starts_here


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_head_that_wants_a_token_is_named_unless_ray_itself_knows_the_token(start_head, code, tmp_path):
    address = start_head(code=code)
    with pytest.raises(
        InputError, match=rf"ray\.address {address}: .* asks for a token.*RAY_AUTH_MODE=token"
    ):
        find_cluster(RayConfig(address=address))
    # Of the Ray that is running on this machine, ray.init finds the token.
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    assert find_cluster(RayConfig()).value == address


def test_a_head_of_another_version_is_refused_with_both_versions(start_head):
    with pytest.raises(InputError) as error:
        find_cluster(RayConfig(address=start_head("2.11.0")))
    assert f"runs version 2.11.0 of Ray, and here is {ray.__version__}" in str(error.value)
    assert "Install ray==2.11.0 here" in str(error.value)


def test_a_dead_address_is_refused_and_the_message_says_what_names_it(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(
        InputError, match=r"RAY_ADDRESS 127.* no Ray .*: connection refused.*`ray start --head`"
    ):
        find_cluster(RayConfig())
    with pytest.raises(InputError, match=r"ray\.address no\.such\.invalid:6379: .*host name .* is unknown"):
        find_cluster(RayConfig(address="no.such.invalid:6379"))
    with pytest.raises(InputError, match=r"ray\.address ray://127.*: connection refused"):
        find_cluster(RayConfig(address=f"ray://127.0.0.1:{free_port()}"))


def test_other_servers_and_silent_ones_are_no_cluster(monkeypatch):
    monkeypatch.setattr(ray_address, "PROBE_S", 1.0)
    web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *arguments: None)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    other_service = grpc.server(futures.ThreadPoolExecutor(1))
    port = other_service.add_insecure_port("127.0.0.1:0")
    other_service.start()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for used in (web.server_port, port, silent.getsockname()[1]):
            with pytest.raises(InputError, match="what answers is no head of a cluster"):
                find_cluster(RayConfig(address=f"127.0.0.1:{used}"))
    web.shutdown()
    web.server_close()
    other_service.stop(None)


@pytest.mark.parametrize("address", ["localhost", "", "host:port", "host:99999", "[::1:6379", ":6379"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="is no address of a cluster; give HOST:PORT"):
        find_cluster(RayConfig(address=address))


def test_a_ray_that_runs_on_this_machine_is_used_unless_it_should_have_other_cpus(start_head, tmp_path):
    assert find_cluster(RayConfig(num_cpus=1)).starts_here
    address = start_head()
    (tmp_path / "ray" / "ray_current_cluster").write_text(address)
    assert find_cluster(RayConfig()).value == address
    assert find_cluster(RayConfig(address="auto")).value == address
    assert find_cluster(RayConfig(address=START_HERE, num_cpus=1)).starts_here
    for key in ("num_cpus", "num_gpus"):
        with pytest.raises(
            InputError, match=rf"ray\.{key}: a Ray is running .* at {address}.*ray\.address=local"
        ):
            find_cluster(RayConfig(**{key: 1}))


def test_auto_is_the_cluster_of_the_variable_as_in_ray_itself(start_head, monkeypatch):
    address = start_head()
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert find_cluster(RayConfig(address="auto")).value == address
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS 127\.0\.0\.1:\d+: no Ray cluster answers there"):
        find_cluster(RayConfig(address="auto"))


def test_auto_finds_a_head_with_a_temporary_folder_of_its_own(start_head, monkeypatch):
    address = start_head()
    monkeypatch.setattr(ray_address, "find_gcs_addresses", lambda: {address})
    assert find_cluster(RayConfig(address="auto")).value == address
    assert find_cluster(RayConfig()).starts_here  # nobody has asked for it


def test_a_file_of_the_token_that_is_missing_is_one_message(start_head, monkeypatch):
    address = start_head()

    def fail(*arguments):
        raise AuthenticationError("no token")

    monkeypatch.setattr(ray_address, "init_grpc_channel", fail)
    with pytest.raises(InputError, match="the cluster asks for a token, and this shell has none"):
        find_cluster(RayConfig(address=address))


def test_the_address_that_a_killed_head_left_behind_is_not_used(tmp_path):
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    assert find_cluster(RayConfig(num_cpus=1)).starts_here
    with pytest.raises(InputError, match=r"ray\.address auto: no Ray is running on this machine"):
        find_cluster(RayConfig(address="auto"))


VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.12.4
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.7
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError(VERSIONS), "There: Ray 2.60.0 with Python 3.12.4; here: Ray 2.60.0 with Python 3.11.7"),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /a/long/one"), "Set RAY_TMPDIR to a short"),
        (RuntimeError("No node info found matching attributes: 'x'"), "`ka-ray submit`"),
        (ValueError("num_cpus and num_gpus must not be provided."), "ray.address=local"),
        (ConnectionError("ray client"), "RAY_AUTH_MODE=token"),
        (PermissionError(13, "Permission denied", "/tmp/ray"), "set RAY_TMPDIR to a folder of yours"),
    ],
)
def test_a_failure_of_opening_says_what_to_do(error, message):
    translated = opening_error(error, "ray.address 10.0.0.1:6379")
    assert isinstance(translated, InputError)
    assert str(translated).startswith("ray.address 10.0.0.1:6379: ")
    assert message in str(translated)


def test_an_unknown_failure_of_opening_may_pass():
    translated = opening_error(Exception("The current node timed out during startup."), "ray")
    assert isinstance(translated, ClusterError)
    assert "cannot be opened: The current node timed out during startup. Ray's own logs are in" in str(
        translated
    )
    full = opening_error(OSError(28, "No space left on device", "/tmp/ray/x"), "ray")
    assert "the disk is full at /tmp/ray/x" in str(full)
