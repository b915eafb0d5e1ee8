"""Ray's job submission: send a job to a cluster, ask how it goes, read its log."""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from ka_ray.errors import InputError

_SERVER = "RAY_API_SERVER_ADDRESS"
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")

STARTING_S = (2.0, 4.0, 8.0, 16.0)
"""Pauses while a cluster that has just started has no agent yet that could take a job."""


@dataclass(frozen=True)
class JobState:
    """How a job goes.

    Attributes:
        status: Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        exit_code: Of its command, once that has ended by itself.
        message: What Ray says of it.
    """

    status: str
    exit_code: int | None
    message: str

    @property
    def over(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status in {"STOPPED", "SUCCEEDED", "FAILED"}


class Jobs:
    """The jobs of one cluster; every request says in one way what went wrong.

    All methods raise :class:`InputError` where trying again is useless (the cluster refuses the token, there
    is no such job) and :class:`ConnectionError` where it may help.

    Args:
        client: A :class:`ray.job_submission.JobSubmissionClient`.
        address: Of the cluster's job server, for messages.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client, self.address = client, address

    def page(self, job_id: str) -> str:
        """Where the dashboard shows a job."""
        return f"{self.address}/#/jobs/{job_id}"

    def submit(self, entrypoint: str, package: Path, environment: dict[str, str]) -> str:
        """Upload a zip file, the job's working directory, and start a command there; give the job's id.

        A package that the cluster has is not uploaded again.
        """
        for pause_s in STARTING_S:
            try:
                return self._submit(entrypoint, package, environment)
            except ConnectionError as error:
                if "No available agent" not in str(error):
                    raise
                time.sleep(pause_s)
        return self._submit(entrypoint, package, environment)

    def _submit(self, entrypoint: str, package: Path, environment: dict[str, str]) -> str:
        runtime_env = {"working_dir": str(package), "env_vars": environment}
        with self._asking():
            return str(self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env))

    def state(self, job_id: str) -> JobState:
        """Ask how a job goes."""
        with self._asking(job_id):
            info = self._client.get_job_info(job_id)
        return JobState(str(info.status), info.driver_exit_code, info.message or "")

    def log(self, job_id: str) -> str:
        """Read all that a job has printed."""
        with self._asking(job_id):
            return str(self._client.get_job_logs(job_id))

    async def tail(self, job_id: str) -> AsyncIterator[str]:
        """Read what a job has printed, from its beginning, then what it prints, as it comes."""
        with self._asking(job_id):
            async for text in self._client.tail_job_logs(job_id):
                yield text

    def stop(self, job_id: str) -> None:
        """Ask a job to stop; it is killed if it does not."""
        with self._asking(job_id):
            self._client.stop_job(job_id)

    @contextmanager
    def _asking(self, job_id: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of requests, aiohttp and Ray: too many kinds to name
            raise _explained(error, self.address, job_id) from None


def open_jobs(address: str) -> Jobs:
    """Reach the job server of a cluster.

    Args:
        address: ``http://HOST:8265`` or ``https://...``.

    Raises:
        InputError: Nothing answers there, or it refuses the token.
    """
    for name in _CHATTY:  # of every upload and closed connection
        logging.getLogger(name).setLevel(logging.WARNING)
    address = address.rstrip("/")
    before = os.environ.get(_SERVER)
    os.environ[_SERVER] = address  # else RAY_ADDRESS, where it is set, would win over the given address
    try:
        return Jobs(JobSubmissionClient(address), address)
    except Exception as error:  # see above
        problem = _explained(error, address)
        if isinstance(problem, InputError):
            raise problem from None
        raise InputError(f"--address {address}: no Ray cluster answers there ({problem})") from None
    finally:
        if before is None:
            del os.environ[_SERVER]
        else:
            os.environ[_SERVER] = before


def _explained(error: Exception, address: str, job_id: str = "") -> Exception:
    status = getattr(error, "status", None)  # of a refused websocket; requests' errors are texts
    if isinstance(error, AuthenticationError) or status in (401, 403):
        return InputError(
            f"--address {address}: the cluster asks for a token, and this shell shows none or another one. "
            "Set RAY_AUTH_MODE=token and the cluster's token: in RAY_AUTH_TOKEN, in a file that "
            "RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token"
        )
    if job_id and (status == 404 or "status code 404" in str(error)):
        return InputError(f"--address {address}: there is no job {job_id}")
    return ConnectionError(str(error) or type(error).__name__)
