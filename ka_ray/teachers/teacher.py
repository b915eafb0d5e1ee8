"""A teacher: a trained, frozen classifier with its own label set and its own preprocessing.

Shapes: B images, H and W in pixels, K classes, C channels of a tap.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.taps import Taps
from ka_ray.teachers.checkpoint import load_checkpoint
from ka_ray.teachers.networks import build_network
from ka_ray.teachers.preprocess import Preprocess


@dataclass
class Teacher:
    """A network in eval mode, without gradients, and what belongs to it."""

    name: str
    classes: tuple[str, ...]
    network: nn.Module
    preprocess: Preprocess

    def to(self, device: torch.device) -> "Teacher":
        """Move the network to a device."""
        self.network.to(device)
        self.preprocess.to(device)
        return self

    def scores(self, images: Tensor) -> Tensor:
        """Score pixels `[B, 3, H, W]` in 0 ... 255: `[B, K]`, without gradients."""
        with torch.no_grad():
            scores: Tensor = self.network(self.preprocess(images))
            return scores

    def features(self, images: Tensor, paths: Mapping[str, str]) -> tuple[dict[str, Tensor], Tensor]:
        """Read features and scores in one forward pass.

        Args:
            images: Pixels `[B, 3, H, W]` in 0 ... 255.
            paths: tap -> module path.

        Returns:
            tap -> `[B, C, *space]`, and scores `[B, K]`.
        """
        with torch.inference_mode(), Taps(self.network, paths) as taps:
            scores = self.network(self.preprocess(images))
        return taps.features, scores

    def check_forward_pass(self, image_size: int, paths: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """Score one black image, so that what cannot work fails before the first real one.

        Returns:
            tap -> shape of its features for one image, ``(C, *space)``.

        Raises:
            InputError: A tap does not exist, is not a feature map or vector, the network refuses the
                image's size, or the number of scores differs from the number of classes.
        """
        device = self.preprocess.mean.device
        image = torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8, device=device)
        try:
            features, scores = self.features(image, paths)
        except InputError:
            raise
        except Exception as error:  # networks refuse sizes in many ways (ViT: AssertionError)
            raise InputError(f"teacher {self.name}: an image of size {image_size} fails: {error}") from None
        if not isinstance(scores, Tensor) or scores.shape != (1, len(self.classes)):
            given = tuple(scores.shape[1:]) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(
                f"teacher {self.name}: {len(self.classes)} classes named, the network gives {given}"
            )
        for tap, path in paths.items():
            if tap not in features:
                raise InputError(f"taps.{tap}: teacher {self.name} never calls {path!r} in a forward pass")
        for tap, feature in features.items():
            if feature.dim() not in (2, 4):
                raise InputError(
                    f"taps.{tap}: teacher {self.name} gives {list(feature.shape)}, not [B, C, *space]"
                )
        return {tap: tuple(feature.shape[1:]) for tap, feature in features.items()}


def load_teacher(config: TeacherConfig) -> Teacher:
    """Build a teacher's network and load its checkpoint.

    Raises:
        InputError: The network is unknown, it has no checkpoint, or the checkpoint does not fit.
    """
    if config.checkpoint is None:
        raise InputError(f"teachers.{config.name}: needs a `checkpoint`, or `training` to train it first")
    return build_teacher(config)


def build_teacher(config: TeacherConfig) -> Teacher:
    """Build a teacher as :func:`load_teacher` does, with random weights where it is still to be trained.

    Taps and shapes do not depend on the weights, so a whole run can be planned before any teacher is.

    Raises:
        InputError: The network is unknown, the checkpoint does not fit, or it and `training` are missing.
    """
    network = build_network(config.network, config.arguments, len(config.classes))
    if config.checkpoint is not None:
        load_checkpoint(network, config.checkpoint)
    elif config.training is None:
        raise InputError(f"teachers.{config.name}: needs a `checkpoint`, or `training` to train it first")
    network.eval().requires_grad_(False)
    return Teacher(config.name, config.classes, network, Preprocess(config.preprocessing).eval())
