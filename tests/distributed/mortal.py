"""A network and a reader that take their process down, as the kernel does where memory runs out."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ka_ray.images.sources import Chunk, EncodedImage, SourceReader


def die_once_more(lives: Path) -> None:
    """Take the process down, if there is a file in a folder to delete."""
    while (death := next(lives.glob("*"), None)) is not None:
        try:
            death.unlink()
        except FileNotFoundError:  # another process took this one at the same moment
            continue
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(nn.Module):
    """Scores images, and takes its process down as often as there are files in a folder to delete."""

    def __init__(self, lives: str, num_classes: int) -> None:
        super().__init__()
        self.lives, self.linear = lives, nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1:  # one image: the check before anything starts
            die_once_more(Path(self.lives))
        scores: torch.Tensor = self.linear(images.mean((2, 3)))
        return scores


@dataclass(frozen=True)
class MortalReader:
    """Reads as another reader does, and takes its process down as often as there are files in a folder."""

    read: SourceReader
    lives: Path

    def __call__(self, chunk: Chunk, wanted: Callable[[int], bool]) -> Iterator[EncodedImage]:
        die_once_more(self.lives)
        return self.read(chunk, wanted)
