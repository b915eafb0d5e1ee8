"""A wrapper of Ray's job submission client, whose errors say whether trying again can help."""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import getproxies, urlopen

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ka_ray.distributed.process_state import environment_restored, log_level
from ka_ray.errors import InputError
from ka_ray.storage.endpoints import split_host_and_port, why_unreachable

_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_VERBOSE_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")

PROBE_S = 5.0
"""Seconds for each of two questions: can the job server be reached, and does it answer? Ray's own client
would wait for ever."""

SUBMIT_RETRY_PAUSES_S = (2.0, 4.0, 8.0, 16.0)
"""Pauses in seconds between attempts to submit to a cluster that is still starting.

A job runs through an agent process that Ray starts on each node. Until the first agent has registered, Ray
answers "No available agent".
"""


@dataclass(frozen=True)
class JobState:
    """The state of a job.

    Attributes:
        status: Ray's name of the state: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: Exit code of the job's command; None if the command is running, was stopped or never ran.
        message: Ray's explanation, for people.
    """

    status: str
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, for whatever reason."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}


class JobClient:
    """Submits jobs to one cluster and asks for their states and logs.

    All methods raise :class:`InputError` if trying again is useless (the cluster refuses the token, there is
    no such job), and :class:`ConnectionError` if it may help.

    Args:
        client: A :class:`ray.job_submission.JobSubmissionClient`.
        address: Address of the cluster's job server, for messages.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self.address = client, address

    def dashboard_url(self, job_id: str) -> str:
        """Return the address at which the dashboard shows a job."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(self, entrypoint: str, package: Path, environment: dict[str, str]) -> str:
        """Upload a zip file and run a command in the folder with its content.

        Ray names a package by the hash of its content, so a package that the cluster already has is not
        uploaded again.

        Args:
            entrypoint: The shell command to run.
            package: The zip file; its content becomes the job's working directory.
            environment: Environment variables to set for the command.

        Returns:
            The job's id.
        """
        for pause_s in SUBMIT_RETRY_PAUSES_S:
            try:
                return self._submit(entrypoint, package, environment)
            except ConnectionError as error:
                if "No available agent" not in str(error):
                    raise
                time.sleep(pause_s)
        return self._submit(entrypoint, package, environment)

    def _submit(self, entrypoint: str, package: Path, environment: dict[str, str]) -> str:
        runtime_env = {"working_dir": str(package), "env_vars": environment}
        with self._translated_errors():
            return str(self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))

    def state(self, job_id: str) -> JobState:
        """Ask for the state of a job."""
        with self._translated_errors(job_id):
            info = self._client.get_job_info(job_id)
        return JobState(str(info.status), info.driver_exit_code, info.message or "")

    def log(self, job_id: str) -> str:
        """Return everything that a job has printed so far."""
        with self._translated_errors(job_id):
            return str(self._client.get_job_logs(job_id))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Yield everything that a job has printed so far, then new output as it arrives."""
        with self._translated_errors(job_id):
            async for text in self._client.tail_job_logs(job_id):
                yield text

    def stop(self, job_id: str) -> None:
        """Ask a job to stop; if it does not, Ray kills it after some seconds."""
        with self._translated_errors(job_id):
            self._client.stop_job(job_id)

    @contextmanager
    def _translated_errors(self, job_id: str = "") -> Iterator[None]:
        with ExitStack() as quiet:
            for name in _VERBOSE_LOGGERS:  # they log every upload and every closed connection
                quiet.enter_context(log_level(name, logging.WARNING))
            try:
                yield
            except Exception as error:  # of requests, aiohttp and Ray: too many types to list
                raise _translate_error(error, self.address, job_id) from None


def connect_job_client(address: str) -> JobClient:
    """Connect to the job server of a cluster.

    Args:
        address: Its URL: ``http://HOST:8265`` or ``https://...``.

    Raises:
        InputError: Nothing answers there within 10 seconds, or the cluster refuses the token.
    """
    address = address.rstrip("/")
    problem = _why_unreachable(address)
    if problem is not None:
        raise InputError(_no_cluster(address, problem))
    # If RAY_ADDRESS is set, Ray's client uses it instead of its argument; this variable precedes both.
    try:
        with environment_restored(lambda: os.environ.update({_ADDRESS_VARIABLE: address})):
            return JobClient(JobSubmissionClient(address), address)
    except Exception as error:  # too many types to list, as above
        translated = _translate_error(error, address)
        if isinstance(translated, InputError):
            raise translated from None
        raise InputError(_no_cluster(address, str(translated))) from None


def _why_unreachable(address: str) -> str | None:
    """Return why no server answers at a URL; None if one does, whatever it says."""
    place = split_host_and_port(address)
    if place is None:  # without a port
        host = address.partition("://")[2].partition("/")[0]
        place = (host, 443 if address.startswith("https") else 80)
    if not getproxies().get(address.partition("://")[0]):
        problem = why_unreachable(*place, PROBE_S)
        if problem is not None:
            return problem
    try:
        urlopen(f"{address}/api/version", timeout=PROBE_S).close()
    except TimeoutError:
        return f"no answer within {PROBE_S:g} s"
    except (OSError, HTTPException, ValueError):  # of HTTP, or of a certificate: Ray's client says which
        return None
    return None


def _no_cluster(address: str, problem: str) -> str:
    return (
        f"--address {address}: no Ray cluster answers there ({problem}); give the address of the "
        "cluster's dashboard, e.g. http://HOST:8265"
    )


def _translate_error(error: Exception, address: str, job_id: str = "") -> Exception:
    """Return an InputError if trying again is useless, otherwise a ConnectionError."""
    # The error of a refused websocket has an attribute `status`. The errors of Ray's HTTP requests only have
    # the status code in their text.
    status = getattr(error, "status", None)
    if isinstance(error, AuthenticationError) or status in (401, 403):
        # The error's own text is left out, because it may contain the token.
        return InputError(
            f"--address {address}: the cluster asks for a token, and this shell has none or a wrong one. "
            "Set RAY_AUTH_MODE=token and the cluster's token: in RAY_AUTH_TOKEN, in a file that "
            "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
        )
    if job_id and (status == 404 or "status code 404" in str(error)):
        return InputError(f"--address {address}: there is no job {job_id}; `ray job list` shows the jobs")
    return ConnectionError(str(error) or type(error).__name__)
