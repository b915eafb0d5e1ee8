"""A network and a reader that kill their own process, as the kernel does if memory runs out.

How often they do so is the number of files in a folder: each kill deletes one of them.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ka_ray.images.sources import Chunk, EncodedImage, SourceReader


def kill_own_process(kills_folder: Path) -> None:
    """Delete a file of the folder and kill this process; do nothing if the folder is empty."""
    while (kill := next(kills_folder.glob("*"), None)) is not None:
        try:
            kill.unlink()
        except FileNotFoundError:  # another process took this one at the same moment
            continue
        os.kill(os.getpid(), signal.SIGKILL)


class SelfKillingNetwork(nn.Module):
    """Scores images, and kills its process as often as there are files in a folder."""

    def __init__(self, kills_folder: str, num_classes: int) -> None:
        super().__init__()
        self.kills_folder, self.linear = kills_folder, nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:  # a single image comes from the check of the teachers before the run
            kill_own_process(Path(self.kills_folder))
        scores: torch.Tensor = self.linear(images.mean((2, 3)))
        return scores


@dataclass(frozen=True)
class SelfKillingReader:
    """Reads like another reader, and kills its process as often as there are files in a folder."""

    read: SourceReader
    kills_folder: Path

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        kill_own_process(self.kills_folder)
        return self.read(chunk, wanted)
