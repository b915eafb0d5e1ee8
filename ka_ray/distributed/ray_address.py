"""Which Ray cluster a run connects to, and whether one answers there; asked before Ray itself tries.

Ray's own attempts to reach a cluster that does not answer last ten minutes (2.60).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.services import find_gcs_addresses
from ray._private.utils import read_ray_address
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from ka_ray.config import RayConfig
from ka_ray.errors import InputError
from ka_ray.storage.endpoints import split_host_and_port, why_unreachable

PROBE_S = 5.0
"""Seconds for each of the two questions: does anything answer, and is it the head of a Ray cluster?"""

REFUSED = "refused"
"""What :func:`find_version` returns for a cluster that wants another token."""

START_HERE = "local"
"""The address with which Ray starts a cluster on this machine, even if one is running already."""


@dataclass(frozen=True)
class RayAddress:
    """Where a run finds its cluster.

    Attributes:
        value: The address for ``ray.init``; :data:`START_HERE` if Ray starts on this machine.
        source: What names the address, for messages: ``ray.address``, ``RAY_ADDRESS``, or the Ray that is
            running on this machine.
        found_here: Whether it is the Ray that is running on this machine, which nobody has named.
    """

    value: str
    source: str = ""
    found_here: bool = False

    @property
    def starts_here(self) -> bool:
        """Whether Ray starts on this machine."""
        return self.value == START_HERE

    def __str__(self) -> str:
        """Name the address and where it comes from, as messages begin."""
        return "ray" if self.starts_here else f"{self.source} {self.value}"


def find_cluster(config: RayConfig) -> RayAddress:
    """Find the cluster of the config or of RAY_ADDRESS, or one on this machine, and check that it answers.

    Args:
        config: The config's ``ray`` section.

    Returns:
        Its address. Without any, Ray starts on this machine.

    Raises:
        InputError: The address is not one, no cluster answers there within 10 seconds, its version of Ray is
            another one, or ``ray.num_cpus`` is given although a Ray is running on this machine.
    """
    given, source = config.address, "ray.address"
    if given is None:
        given, source = os.environ.get("RAY_ADDRESS") or None, "RAY_ADDRESS"
    named = os.environ.get("RAY_ADDRESS") or "auto"
    if given == "auto" and named not in ("auto", START_HERE):  # as in Ray, which job drivers rely on
        given, source = named, "RAY_ADDRESS"
    if given == START_HERE:
        return RayAddress(START_HERE)
    if given is None or given == "auto":
        return _find_running(config, required=given == "auto", source=source)
    return _check_given(RayAddress(given, source))


def _check_given(address: RayAddress) -> RayAddress:
    """Return an address that the user has given, if a cluster answers there."""
    given = address.value
    if given.startswith(("http://", "https://")):
        raise InputError(
            f"{address}: is the address of a cluster's job server; send it a job with "
            "`ka-ray submit`, or give the address of the cluster itself (host:port, printed by `ray start`)"
        )
    place = split_host_and_port(given)
    if place is None:
        raise InputError(
            f"{address}: is no address of a cluster; give HOST:PORT as `ray start --head` prints it, e.g. "
            "10.0.0.1:6379, or leave it out to start Ray on this machine"
        )
    problem = why_unreachable(*place, PROBE_S)
    if problem is None and "://" in given:  # ray://, whose client compares versions itself
        return address
    version = None if problem else find_version(given)
    if version == REFUSED:
        raise _token_error(address)
    if version is None:
        raise InputError(
            f"{address}: no Ray cluster answers there: {problem or 'what answers is no head of a cluster'}. "
            "Start it (`ray start --head`), or give the HOST:PORT that it printed; without "
            f"{address.source}, Ray starts on this machine"
        )
    _check_version(address, version)
    return address


def _find_running(config: RayConfig, required: bool, source: str) -> RayAddress:
    """Find the Ray that `ray start` has started on this machine; without one, Ray starts here."""
    recorded, is_default = read_ray_address(), True
    if recorded is None and required:  # a head with a temporary folder of its own, as Ray looks for it
        recorded, is_default = next(iter(find_gcs_addresses()), None), False
    place = split_host_and_port(recorded or "")
    # A head that was killed leaves its address behind, in a file of the temporary folder.
    lives = recorded and place and why_unreachable(*place, PROBE_S) is None
    version = find_version(recorded) if recorded and lives else None
    if recorded is None or version is None:
        if required:
            raise InputError(
                f"{source} auto: no Ray is running on this machine; start one (`ray start --head`), or leave "
                f"{source} out to start Ray for this command only"
            )
        return RayAddress(START_HERE)
    address = RayAddress(recorded, "the Ray that is running on this machine,", found_here=is_default)
    if version == REFUSED and not (is_default and _can_have_token()):
        raise _token_error(address)
    _check_version(address, version)
    own = [key for key in ("num_cpus", "num_gpus") if getattr(config, key) is not None]
    if own and not required:
        raise InputError(
            f"ray.{own[0]}: a Ray is running on this machine already, at {recorded}, and has its own CPUs "
            f"and GPUs. Leave ray.{own[0]} out to use it, set ray.address={START_HERE} to start another one, "
            "or stop it (`ray stop`)"
        )
    return address


def find_version(address: str) -> str | None:
    """Ask what answers at ``host:port`` for its version of Ray; takes at most :data:`PROBE_S` seconds.

    Args:
        address: The address, ``host:port``.

    Returns:
        The version; :data:`REFUSED` if it is a cluster that wants another token. None if what answers is no
        head of a cluster.
    """
    try:
        stub: Any = NodeInfoGcsServiceStub(init_grpc_channel(address))
        return str(stub.CheckAlive(CheckAliveRequest(), timeout=PROBE_S).ray_version)
    except AuthenticationError:  # the token's file is missing or empty
        return REFUSED
    except grpc.RpcError as error:
        refused = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
        return REFUSED if error.code() in refused else None


def _token_error(address: RayAddress) -> InputError:
    return InputError(
        f"{address}: the cluster asks for a token, and this shell has none or a wrong one: set "
        "RAY_AUTH_MODE=token and the cluster's token, in RAY_AUTH_TOKEN or in a file that "
        "RAY_AUTH_TOKEN_PATH names"
    )


def _can_have_token() -> bool:
    """Return whether Ray can look for a token itself; a file that is named must be there."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return not named or (Path(named).is_file() and Path(named).stat().st_size > 0)


def _check_version(address: RayAddress, version: str) -> None:
    # Ray itself finds the token of a cluster that nobody has named.
    if version not in (REFUSED, ray.__version__):
        raise InputError(
            f"{address}: runs version {version} of Ray, and here is {ray.__version__}: both must be the "
            f"same. Install ray=={version} here, or use another cluster (ray.address={START_HERE} starts one)"
        )
