"""`ka-ray submit`: check a run here, send it to a cluster as a Ray job, follow it."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ka_ray.config import Config, Places, TeachConfig, is_absolute, read_tree
from ka_ray.errors import InputError
from ka_ray.storage.files import format_bytes
from ka_ray.storage.uris import has_credentials
from ka_ray.submission.client import open_jobs
from ka_ray.submission.follow import resume_command, watch
from ka_ray.submission.package import JobPackage, pack

VERBS: dict[str, type[Config] | type[TeachConfig]] = {
    "run": Config,
    "tune": Config,
    "spectrum": Config,
    "compare": Config,
    "teach": TeachConfig,
}
"""What can be sent, and what its config is."""

OPTIONS = {"extend": "run", "methods": "compare", "seeds": "compare", "vary": "compare"}
"""Options that one verb alone has."""


@dataclass(frozen=True)
class JobRequest:
    """What is to be run on the cluster.

    Attributes:
        verb: Of :data:`VERBS`.
        config: The YAML file, here.
        overrides: ``dotted.key=value``.
        output: Where the run leaves its results, as the cluster's nodes reach it; None: the config says it.
        options: Of the verb, as given; None or empty: not given.
    """

    verb: str
    config: Path
    overrides: Sequence[str]
    output: str | None
    options: dict[str, Any]


def submit(request: JobRequest, address: str | None, wait: bool = True) -> int:
    """Send a job, and follow it to its end.

    Args:
        order: What to run.
        address: Of the cluster's job server; None: ``RAY_ADDRESS``.
        wait: Else the job's id is all that comes of it.

    Returns:
        The exit code; see :func:`ka_ray.submission.follow.watch`.

    Raises:
        InputError: Something given cannot work. Nothing has been uploaded then.
    """
    address = job_server(address)
    package, overrides, output = prepare(request)
    entrypoint = command(request, package.config, overrides, output)
    environment, note = job_environment()
    jobs = open_jobs(address)
    for entry in package.entries:
        print(f"sent: {entry.name} ({len(entry.files)} file(s), {format_bytes(entry.num_bytes)})")
    for module in package.missing:
        print(f"not found here, so the cluster must have it: module {module}")
    if note:
        print(note)
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        package.write(archive)
        try:
            job_id = jobs.submit(entrypoint, archive, environment)
        except ConnectionError as error:
            raise InputError(f"--address {address}: the cluster did not take the job: {error}") from None
    print(
        f"job: {job_id}\ncommand: {entrypoint}\noutput: {output}\ndashboard: {jobs.page(job_id)}", flush=True
    )
    if not wait:
        print(resume_command(jobs, job_id))
        return 0
    return watch(jobs, job_id)


def follow(job_id: str, address: str | None) -> int:
    """Follow a job that was sent before, from the beginning of its log; give its exit code.

    Raises:
        InputError: There is no such job, or no such cluster.
    """
    return watch(open_jobs(job_server(address)), job_id)


def job_server(address: str | None) -> str:
    """Find the address of the cluster's job server.

    Raises:
        InputError: None is given, or it is of another kind.
    """
    given = address or os.environ.get("RAY_ADDRESS", "")
    if not given.startswith(("http://", "https://")):
        what = f"is {given!r}" if given else "is missing, and RAY_ADDRESS is not set"
        raise InputError(f"--address: {what}; give the cluster's job server, e.g. http://HOST:8265")
    return given


def prepare(request: JobRequest) -> tuple[JobPackage, list[str], str]:
    """Check all that can be checked here, and gather what the job needs.

    Returns:
        What travels, the overrides of the config, and the output folder.

    Raises:
        InputError: Something given cannot work, or is too large.
    """
    if request.verb not in VERBS:
        raise InputError(f"--verb: {request.verb!r}; there are {', '.join(VERBS)}")
    for name, verb in OPTIONS.items():
        if request.options.get(name) and verb != request.verb:
            raise InputError(f"--{name} belongs to --verb {verb}")
    if request.verb == "compare":
        _check_compared(request.options)
    overrides = list(request.overrides)
    outside = [f"{key}={value}" for key, value in _folders(request).items()]
    places = Places()
    config = VERBS[request.verb].load(request.config, [*overrides, *outside], places)
    tree = read_tree(request.config, [*overrides, *outside])
    tracked_at = os.environ.get("MLFLOW_TRACKING_URI", "")
    if config.tracking.uri is None and config.tracking.backend == "mlflow" and _can_be_passed(tracked_at):
        overrides.append(f"tracking.uri={tracked_at}")
    package = pack(request.config, tree, places.here)
    package.check()
    return package, overrides, _lasting(tree.get("output"))


def _folders(request: JobRequest) -> dict[str, str]:
    given = {"output": request.output, "extend": request.options.get("extend")}
    return {key: str(value) for key, value in given.items() if value}


def _check_compared(options: dict[str, Any]) -> None:
    from ka_ray.runs.variants import expand_variants

    expand_variants((options.get("methods") or "direct").split(","), options.get("vary") or [])


def _lasting(output: Any) -> str:
    if not isinstance(output, str) or not is_absolute(output) or output.startswith("~"):
        given = f"{output!r} is relative" if output else "is missing"
        raise InputError(
            f"--output: {given}; the job's working directory on the cluster is temporary. Give an absolute "
            "path that every node reaches, or a URI (s3://..., gs://...)"
        )
    return output


def _can_be_passed(tracking_uri: str) -> bool:
    return tracking_uri.startswith(("http://", "https://")) and not has_credentials(tracking_uri)


def command(request: JobRequest, config: str, overrides: Sequence[str], output: str) -> str:
    """Write the shell command of a job, as it runs in the folder with what was sent."""
    words = ["python", "-m", "ka_ray.cli", request.verb, config]
    for override in overrides:
        words += ["--set", override]
    for name, value in request.options.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}", str(one)] if one else []
    return shlex.join([*words, "--output", output])


def job_environment() -> tuple[dict[str, str], str | None]:
    """The job's environment variables, which anyone can read who sees the job; and what to say of them.

    No secret is among them: passwords and keys come from the cluster's own environment.
    """
    environment, tracking_uri = {"PYTHONUNBUFFERED": "1"}, os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        return environment, None
    if has_credentials(tracking_uri):
        return environment, (
            "MLFLOW_TRACKING_URI is not passed on: its password would stand in the job's metadata"
        )
    return environment | {"MLFLOW_TRACKING_URI": tracking_uri}, f"MLFLOW_TRACKING_URI: {tracking_uri}"
