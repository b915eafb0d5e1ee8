"""Save and load the state of training after each epoch, so that lost workers cost at most one epoch."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ka_ray.errors import InputError
from ka_ray.storage.files import atomic_file, make_folder, read_bytes


def save_training_state(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, steps: int, history: Sequence[Any]
) -> None:
    """Write the state of training to a file, atomically.

    Args:
        path: File to write, local or remote.
        learner: Module whose parameters and buffers are saved.
        optimizer: Optimizer whose state is saved.
        steps: Number of optimizer steps taken so far.
        history: One :class:`ka_ray.training.fit.Progress` per finished epoch.
    """
    state: dict[str, Any] = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"steps": steps, "history": [asdict(record) for record in history]}
    make_folder(path.parent)
    with atomic_file(path) as part:
        torch.save(state, part)


def load_training_state(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Restore learner and optimizer from a file, in place.

    Args:
        path: File that :func:`save_training_state` wrote.
        learner: Module of the same architecture as the saved one.
        optimizer: Optimizer of the learner's parameters.

    Returns:
        Number of optimizer steps taken, and per finished epoch the fields of its
        :class:`ka_ray.training.fit.Progress`.

    Raises:
        InputError: The file is damaged, or belongs to another learner.
    """
    try:
        state = torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True)
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["steps"]), list(state["history"])
    except Exception as error:  # torch raises many different exceptions for damaged files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"checkpoint {path} cannot be used ({reason}). Delete it, and the stage starts from its first "
            "epoch"
        ) from None
