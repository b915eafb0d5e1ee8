"""What job submission says when it fails; no Ray is started. tests/end_to_end/test_job.py sends real jobs."""

import os
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray.exceptions import AuthenticationError

from ka_ray.errors import InputError
from ka_ray.submission import client as module
from ka_ray.submission.client import Jobs, open_jobs
from ka_ray.submission.package import MAX_UPLOAD_BYTES


def test_the_limit_is_what_rays_server_takes():
    """Its client would allow 512 MiB, and the server then refuses with 413."""
    assert MAX_UPLOAD_BYTES == ray_constants.DASHBOARD_CLIENT_MAX_SIZE


class Client:
    """Refuses a number of times, then takes the job; remembers which address it would use."""

    def __init__(self, *errors):
        self.errors, self.sent = list(errors), []

    def submit_job(self, *, entrypoint, runtime_env):
        if self.errors:
            raise self.errors.pop(0)
        self.sent.append((entrypoint, runtime_env))
        return "job"


NO_AGENT = RuntimeError(
    "Request failed with status code 500: No available agent to submit job, please try again"
)


def test_a_cluster_that_has_just_started_is_waited_for(monkeypatch):
    pauses = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    client = Client(NO_AGENT, NO_AGENT)
    assert Jobs(client, "http://h").submit("echo", Path("job.zip"), {"A": "b"}) == "job"
    assert client.sent == [("echo", {"working_dir": "job.zip", "env_vars": {"A": "b"}})]
    assert pauses == [2.0, 4.0]
    with pytest.raises(ConnectionError, match="No available agent"):
        Jobs(Client(*[NO_AGENT] * 9), "http://h").submit("echo", Path("job.zip"), {})


def test_any_other_refusal_is_told_at_once():
    client = Client(RuntimeError("Request failed with status code 413: Maximum request body size exceeded"))
    with pytest.raises(ConnectionError, match="413"):
        Jobs(client, "http://h").submit("echo", Path("job.zip"), {})


@pytest.mark.parametrize("error", [AuthenticationError("invalid token s3cret"), "status"])
def test_a_refused_token_is_one_message_without_the_token(error):
    if error == "status":
        error = RuntimeError("s3cret")
        error.status = 401  # as of a websocket
    with pytest.raises(
        InputError, match=r"RAY_AUTH_MODE=token .*RAY_AUTH_TOKEN, .*~/\.ray/auth_token"
    ) as raised:
        Jobs(Client(error), "http://h").submit("echo", Path("job.zip"), {})
    assert "s3cret" not in str(raised.value)


def test_the_given_address_counts_whatever_ray_address_says(monkeypatch):
    used = []

    def client(address):
        used.append(module.os.environ["RAY_API_SERVER_ADDRESS"])

    monkeypatch.setattr(module, "JobSubmissionClient", client)
    monkeypatch.setenv("RAY_ADDRESS", "http://other:8265")
    assert open_jobs("http://given:8265/").page("job") == "http://given:8265/#/jobs/job"
    assert used == ["http://given:8265"]
    assert "RAY_API_SERVER_ADDRESS" not in os.environ
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://third:8265")
    open_jobs("http://given:8265")
    assert used == ["http://given:8265"] * 2
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://third:8265"


def test_no_cluster_is_one_message():
    with pytest.raises(InputError, match=r"--address http://127\.0\.0\.1:9: no Ray cluster answers there"):
        open_jobs("http://127.0.0.1:9")
