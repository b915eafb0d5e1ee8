"""Test the job client without a cluster; tests/end_to_end/test_job.py sends real jobs."""

import os
import socket
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from ka_ray.errors import InputError
from ka_ray.submission import client as client_module
from ka_ray.submission.client import JobClient, connect_job_client
from ka_ray.submission.package import MAX_UPLOAD_BYTES


def test_the_upload_limit_equals_that_of_rays_job_server():
    """Ray's client would allow 512 MiB, and the server would then refuse with status 413."""
    assert MAX_UPLOAD_BYTES == ray_constants.DASHBOARD_CLIENT_MAX_SIZE


class FakeRayClient:
    """Replaces Ray's client: raises the given errors, one per call, and then records the jobs it is sent."""

    def __init__(self, *errors):
        self.errors, self.submitted = list(errors), []

    def submit_job(self, *, entrypoint, runtime_env):
        if self.errors:
            raise self.errors.pop(0)
        self.submitted.append((entrypoint, runtime_env))
        return "job"


NO_AGENT = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again"
)


def test_submit_retries_while_a_cluster_is_starting(monkeypatch):
    pauses = []
    monkeypatch.setattr(client_module.time, "sleep", pauses.append)
    client = FakeRayClient(NO_AGENT, NO_AGENT)
    assert JobClient(client, "http://h").submit("echo", Path("job.zip"), {"A": "b"}) == "job"
    assert client.submitted == [("echo", {"working_dir": "job.zip", "env_vars": {"A": "b"}})]
    assert pauses == [2.0, 4.0]
    with pytest.raises(ConnectionError, match="No available agent"):
        JobClient(FakeRayClient(*[NO_AGENT] * 9), "http://h").submit("echo", Path("job.zip"), {})


def test_submit_raises_other_errors_without_retries():
    too_large = RuntimeError("Request failed with status code 413: Maximum request body size exceeded")
    client = FakeRayClient(too_large)
    with pytest.raises(ConnectionError, match="413"):
        JobClient(client, "http://h").submit("echo", Path("job.zip"), {})


@pytest.mark.parametrize("error", [AuthenticationError("invalid token s3cret"), "status"])
def test_a_refused_token_is_reported_without_the_token(error):
    if error == "status":
        error = RuntimeError("s3cret")
        error.status = 401  # as aiohttp sets it for a refused websocket
    with pytest.raises(
        InputError, match=r"RAY_AUTH_MODE=token .*RAY_AUTH_TOKEN, .*~/\.ray/auth_token"
    ) as raised:
        JobClient(FakeRayClient(error), "http://h").submit("echo", Path("job.zip"), {})
    assert "s3cret" not in str(raised.value)


def test_the_given_address_takes_precedence_over_ray_address(monkeypatch):
    monkeypatch.setattr(client_module, "_why_unreachable", lambda address: None)
    used_addresses = []

    def make_client(address):
        used_addresses.append(client_module.os.environ["RAY_API_SERVER_ADDRESS"])

    monkeypatch.setattr(client_module, "JobSubmissionClient", make_client)
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert connect_job_client("http://given:8265/").dashboard_url("job") == "http://given:8265/#/jobs/job"
    assert used_addresses == ["http://given:8265"]
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://third:8265")
    connect_job_client("http://given:8265")
    assert used_addresses == ["http://given:8265"] * 2
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://third:8265"


def test_an_address_without_a_cluster_is_reported():
    with pytest.raises(InputError, match=r"--address http://127\.0\.0\.1:9: no Ray cluster answers there"):
        connect_job_client("http://127.0.0.1:9")


def test_a_server_that_is_reached_but_does_not_answer_is_reported(monkeypatch):
    monkeypatch.setattr(client_module, "PROBE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match=r"no Ray cluster answers there \(no answer within 0\.5 s\)"):
            connect_job_client(f"http://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["http://", "http://no.such.invalid", "https://[::1", "http://a b:1"])
def test_an_address_that_names_no_host_is_reported(address):
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        connect_job_client(address)
