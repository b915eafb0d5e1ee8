"""Messages for the user if Ray cannot be opened: what is wrong, and what to do."""

import os
import re
import tempfile

from ka_ray.distributed.failures import last_line
from ka_ray.errors import ClusterError, InputError, disk_full_error

ADVICE = {
    r"Version mismatch": "the cluster and this process have different versions. {versions}. Install the "
    "same versions of Ray and Python on both",
    r"AF_UNIX path length": "the temporary folder {folder} has too long a name: Ray makes sockets in it, "
    "whose paths the operating system limits to about 100 characters. Set RAY_TMPDIR to a short folder, e.g. "
    "RAY_TMPDIR=/tmp",
    r"No node info found|Failed to get node info|match this node's IP": "a cluster answers, but this machine "
    "is not one of its nodes. Send the run with `ka-ray submit`, or start the command on one of its nodes",
    r"Invalid address|Malformed address|Unable to parse port": "is no address of a cluster; give HOST:PORT "
    "as `ray start --head` prints it",
    r"num_cpus and num_gpus": "a running cluster has its own CPUs and GPUs; leave ray.num_cpus and "
    "ray.num_gpus out, or set ray.address=local to start another Ray",
    r"ConnectionError|AuthenticationError|RAY_AUTH": "no cluster answers there, or it refuses this shell's "
    "token: set RAY_AUTH_MODE=token and the cluster's token, in RAY_AUTH_TOKEN or in a file that "
    "RAY_AUTH_TOKEN_PATH names",
}
"""Pattern in the error of ``ray.init`` -> what to tell the user."""


def opening_error(error: Exception, address: str) -> Exception:
    """Turn an error of ``ray.init`` into one for the user.

    Args:
        error: What was raised.
        address: Names the cluster and the key that it comes from, as the message begins.

    Returns:
        An InputError with advice if the cause is known. Otherwise a ClusterError with the cause: it may help
        to try again, for example on a machine that was too busy to start Ray in time.
    """
    full = disk_full_error(error)
    if full is not None:
        return full
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    text = str(error)
    for pattern, advice in ADVICE.items():
        if re.search(pattern, f"{type(error).__name__}: {text}"):
            return InputError(f"{address}: {advice.format(folder=folder, versions=_versions(text))}")
    if isinstance(error, PermissionError | FileNotFoundError | NotADirectoryError):
        return InputError(f"{address}: cannot write its files: {text}; set RAY_TMPDIR to a folder of yours")
    cause = last_line(text).rstrip(".") or type(error).__name__
    return ClusterError(
        f"{address}: cannot be opened: {cause}. Ray's own logs are in {folder}/ray/session_latest/logs"
    )


def _versions(text: str) -> str:
    """Shorten Ray's table of versions to one line."""
    found = re.findall(r"(Ray|Python): (\S+)", text)
    if len(found) < 4:
        return last_line(text)
    there, here = ([f"{name} {number}" for name, number in part] for part in (found[:2], found[2:4]))
    return f"There: {' with '.join(there)}; here: {' with '.join(here)}"
