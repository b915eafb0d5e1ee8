"""What a training stage leaves after every epoch, so that lost workers cost one epoch and not the stage."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ka_ray.errors import InputError
from ka_ray.storage.files import atomic_file, make_folder, read_bytes


def save_epoch(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer, steps: int, history: Sequence[Any]
) -> None:
    """Write where a fit stands, in one atomic step.

    Args:
        path: Of the file.
        learner: Its parameters and statistics are kept.
        optimizer: Its state is kept.
        steps: Taken so far.
        history: One :class:`ka_ray.training.fit.Progress` an epoch.
    """
    state: dict[str, Any] = {"learner": learner.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"steps": steps, "history": [asdict(record) for record in history]}
    make_folder(path.parent)
    with atomic_file(path) as part:
        torch.save(state, part)


def load_epoch(
    path: Path, learner: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Go back to where a fit stood, in place.

    Returns:
        The steps taken, and the epochs' records.

    Raises:
        InputError: The file is damaged, or of another learner.
    """
    try:
        state = torch.load(io.BytesIO(read_bytes(path)), map_location="cpu", weights_only=True)
        learner.load_state_dict(state["learner"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["steps"]), list(state["history"])
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise InputError(
            f"checkpoint {path} cannot be used ({reason}); delete it, and the stage begins anew"
        ) from None
