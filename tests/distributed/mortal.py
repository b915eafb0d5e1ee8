"""A network that takes its process down, as the kernel does where memory runs out."""

import os
import signal
from pathlib import Path

import torch
from torch import nn


class Mortal(nn.Module):
    """Scores images, and takes its process down as often as there are files in a folder to delete."""

    def __init__(self, lives: str, num_classes: int) -> None:
        super().__init__()
        self.lives, self.linear = lives, nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        death = next(Path(self.lives).glob("*"), None)
        if death is not None and len(images) > 1:  # one image: the check before anything starts
            death.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        scores: torch.Tensor = self.linear(images.mean((2, 3)))
        return scores
