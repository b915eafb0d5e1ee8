"""`ka-ray submit`: check a run on this machine, send it to a cluster as a Ray job, and follow it."""

import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ka_ray.config import ClusterContext, Config, TeachConfig, is_absolute, read_tree
from ka_ray.errors import InputError
from ka_ray.runs.variants import default_methods, expand_variants
from ka_ray.storage.files import format_bytes
from ka_ray.storage.uris import has_credentials
from ka_ray.submission.client import connect_job_client
from ka_ray.submission.follow import follow_again_hint, follow_job
from ka_ray.submission.package import JobPackage, collect_package

VERBS: dict[str, type[Config] | type[TeachConfig]] = {
    "run": Config,
    "tune": Config,
    "spectrum": Config,
    "compare": Config,
    "teach": TeachConfig,
}
"""Command of `ka-ray` that can be sent to a cluster (option ``--verb``) -> the type of its config."""

OPTIONS = {"extend": "run", "methods": "compare", "seeds": "compare", "vary": "compare"}
"""Option of `ka-ray submit` -> the only verb for which it may be given."""


@dataclass(frozen=True)
class JobRequest:
    """What to run on the cluster.

    Attributes:
        verb: One of :data:`VERBS`.
        config: The YAML file on this machine.
        overrides: Config overrides, each ``dotted.key=value``.
        output: The run's output folder: a path that all nodes of the cluster can reach, or a URI. None: the
            folder that the config names.
        options: The verb's own options by name; an option that is None or empty counts as not given.
    """

    verb: str
    config: Path
    overrides: Sequence[str]
    output: str | None
    options: dict[str, Any]


def submit(request: JobRequest, address: str | None, wait: bool = True) -> int:
    """Send a job, and show its log until it ends.

    Args:
        request: What to run.
        address: URL of the cluster's job server; None: the environment variable RAY_ADDRESS.
        wait: Whether to show the job's log until it ends; otherwise only its id is printed.

    Returns:
        The exit code; see :func:`ka_ray.submission.follow.follow_job`. 0 without waiting.

    Raises:
        InputError: Something in the request cannot work. Nothing has been uploaded in that case.
    """
    address = job_server_address(address)
    package, overrides, output = prepare_job(request)
    entrypoint = build_entrypoint(request, package.config, overrides, output)
    environment, note = job_environment()
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "job.zip"
        package.write(archive)
        client = connect_job_client(address)
        _print_package(package, note)
        try:
            job_id = client.submit(entrypoint, archive, environment)
        except ConnectionError as error:
            raise InputError(f"--address {address}: the cluster did not accept the job: {error}") from None
    url = client.dashboard_url(job_id)
    print(f"job: {job_id}\ncommand: {entrypoint}\noutput: {output}\ndashboard: {url}", flush=True)
    # Flushed above, so that the job's id is on the terminal even if following fails at once.
    if not wait:
        print(follow_again_hint(client, job_id))
        return 0
    return follow_job(client, job_id)


def _print_package(package: JobPackage, note: str | None) -> None:
    for entry in package.entries:
        print(f"sent: {entry.name} ({len(entry.files)} file(s), {format_bytes(entry.num_bytes)})")
    for module in package.missing:
        print(f"module {module} is not on this machine, so it must be installed on the cluster")
    if note:
        print(note)


def follow(job_id: str, address: str | None) -> int:
    """Show the log of a job that was sent before, from its beginning, and return the job's exit code.

    Args:
        job_id: The job's id, which `ka-ray submit` printed.
        address: URL of the cluster's job server; None: the environment variable RAY_ADDRESS.

    Raises:
        InputError: There is no such job, or no such cluster.
    """
    return follow_job(connect_job_client(job_server_address(address)), job_id)


def job_server_address(address: str | None) -> str:
    """Return the URL of the cluster's job server.

    Args:
        address: The URL that the user gave; None: the environment variable RAY_ADDRESS.

    Raises:
        InputError: There is no address, or it is not a URL (RAY_ADDRESS may be the address of a Ray node).
    """
    url = address or os.environ.get("RAY_ADDRESS", "")
    if not url.startswith(("http://", "https://")):
        what = f"is {url!r}" if url else "is missing, and RAY_ADDRESS is not set"
        raise InputError(f"--address: {what}; give the cluster's job server, e.g. http://HOST:8265")
    return url


def prepare_job(request: JobRequest) -> tuple[JobPackage, list[str], str]:
    """Check everything that can be checked on this machine, and collect what the job needs.

    Args:
        request: What to run.

    Returns:
        The files to send, the overrides to run with, and the output folder.

    Raises:
        InputError: Something in the request cannot work.
    """
    if request.verb not in VERBS:
        raise InputError(f"--verb: {request.verb!r}; there are {', '.join(VERBS)}")
    for name, verb in OPTIONS.items():
        if request.options.get(name) and verb != request.verb:
            raise InputError(f"--{name} belongs to --verb {verb}")
    overrides = list(request.overrides)
    # These are options of the job's command, not overrides; here they are needed to check the config.
    folders = [f"{key}={value}" for key, value in _folder_options(request).items()]
    cluster = ClusterContext()
    config = VERBS[request.verb].load(request.config, [*overrides, *folders], cluster)
    if isinstance(config, Config):
        _check_compare_options(config, request)
    tree = read_tree(request.config, [*overrides, *folders])
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if config.tracking.uri is None and config.tracking.backend == "mlflow" and _can_be_sent(tracking_uri):
        # As an override, so that the run's config.json names the server, too.
        overrides.append(f"tracking.uri={tracking_uri}")
    package = collect_package(request.config, tree, cluster.local_paths)
    return package, overrides, _check_output(tree.get("output"))


def _folder_options(request: JobRequest) -> dict[str, str]:
    options = {"output": request.output, "extend": request.options.get("extend")}
    return {key: str(value) for key, value in options.items() if value}


def _check_compare_options(config: Config, request: JobRequest) -> None:
    if request.verb != "compare":
        return
    methods = request.options.get("methods")
    expand_variants(
        methods.split(",") if methods else default_methods(config), request.options.get("vary") or []
    )


def _check_output(output: Any) -> str:
    """Return the output folder if it still exists after the job; raise InputError otherwise."""
    if not isinstance(output, str) or not is_absolute(output) or output.startswith("~"):
        what = f"{output!r} is relative" if output else "is missing"
        raise InputError(
            f"--output: {what}; the job's working directory on the cluster is temporary. Give an absolute "
            "path that every node reaches, or a URI (s3://..., gs://...)"
        )
    return output


def _can_be_sent(tracking_uri: str) -> bool:
    """Return whether a tracking URI is a server that the cluster may reach, without a password in it."""
    return tracking_uri.startswith(("http://", "https://")) and not has_credentials(tracking_uri)


def build_entrypoint(request: JobRequest, config: str, overrides: Sequence[str], output: str) -> str:
    """Return the shell command of a job.

    Args:
        request: What to run.
        config: Path of the config file in the job's working directory.
        overrides: Config overrides, each ``dotted.key=value``.
        output: The run's output folder.
    """
    words = ["python", "-m", "ka_ray.cli", request.verb, config]
    for override in overrides:
        words += ["--set", override]
    for name, value in request.options.items():
        # An option that may be given several times is a list, and becomes several options again.
        for item in value if isinstance(value, list) else [value]:
            words += [f"--{name}", str(item)] if item else []
    return shlex.join([*words, "--output", output])


def job_environment() -> tuple[dict[str, str], str | None]:
    """Return the job's environment variables, and a note to the user about them, or None.

    Whoever may see the job can read its variables, so no secret is among them: passwords and keys come from
    the cluster's own environment.
    """
    # Unbuffered, so that the log can be followed line by line.
    environment, tracking_uri = {"PYTHONUNBUFFERED": "1"}, os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking_uri:
        return environment, None
    if has_credentials(tracking_uri):
        return environment, (
            "MLFLOW_TRACKING_URI is not passed on, because its password would be shown with the job; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on the cluster instead"
        )
    return environment | {"MLFLOW_TRACKING_URI": tracking_uri}, f"MLFLOW_TRACKING_URI: {tracking_uri}"
