"""Save and load the state of training, mostly after each epoch, so that lost workers cost at most one."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from ka_ray.errors import InputError
from ka_ray.storage.files import atomic_file, make_folder, read_bytes
from ka_ray.training.interruption import MiddleOfEpoch


class Stateful(Protocol):
    """Anything with a state as torch's modules, optimizers and gradient scalers have one."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore the state, in place."""


def save_training_state(
    path: Path,
    parts: Mapping[str, Stateful],
    steps: int,
    history: Sequence[Any],
    middle: MiddleOfEpoch | None = None,
) -> None:
    """Write the state of training to a file, atomically.

    Args:
        path: File to write, local or remote.
        parts: Name -> what has a state: learner, optimizer, and others.
        steps: Number of optimizer steps taken so far.
        history: One :class:`ka_ray.training.fit.Progress` per finished epoch.
        middle: The place in the epoch that has begun; None after an epoch.
    """
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    state |= {"steps": steps, "history": [asdict(record) for record in history]}
    state |= {"middle": None if middle is None else middle.state}
    make_folder(path.parent)
    with atomic_file(path) as part_file:
        torch.save(state, part_file)


def load_training_state(
    path: Path, parts: Mapping[str, Stateful]
) -> tuple[int, list[dict[str, Any]], MiddleOfEpoch | None]:
    """Restore the state of training from a file, in place.

    Args:
        path: File that :func:`save_training_state` wrote.
        parts: The same parts, of the same architecture as the saved ones.

    Returns:
        Number of optimizer steps taken, per finished epoch the fields of its
        :class:`ka_ray.training.fit.Progress`, and the place in the next epoch, if it has begun.

    Raises:
        InputError: The file is damaged, or belongs to another learner.
    """
    try:
        state = torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        middle = MiddleOfEpoch.load(state.get("middle"))  # files of earlier versions have none
        return int(state["steps"]), list(state["history"]), middle
    except Exception as error:  # torch raises many different exceptions for damaged files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"checkpoint {path} cannot be used ({reason}). Delete it, and the stage starts from its first "
            "epoch"
        ) from None
