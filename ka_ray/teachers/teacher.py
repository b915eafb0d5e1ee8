"""A teacher: a trained, frozen classifier with its own label set and its own preprocessing.

Shapes: B images, H and W in pixels, K classes of the teacher, C channels of a tap, ``*space`` its height and
width in positions (empty after a linear layer).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ka_ray.config import TeacherConfig
from ka_ray.errors import InputError
from ka_ray.features.find_layout import resolve_tap_paths
from ka_ray.features.taps import Taps
from ka_ray.images.views import View
from ka_ray.numerics.memory_format import move_network
from ka_ray.teachers.activations import to_scores
from ka_ray.teachers.checkpoint import load_checkpoint, load_fitting_weights
from ka_ray.teachers.last_layer import ReadEmbedding, find_last_layer
from ka_ray.teachers.networks import build_network, check_transform_input
from ka_ray.teachers.outputs import find_scores
from ka_ray.teachers.preprocess import Preprocess

Result = TypeVar("Result")


@dataclass
class Teacher:
    """A frozen network in eval mode with its class names and preprocessing.

    Attributes:
        name: Name of the teacher in the config.
        classes: Class names in the order of the scores.
        network: Network from preprocessed images to scores.
        preprocess: Module that turns pixels into the network's input.
        output: Name or position of the scores in the network's output; None: found by their shape.
        final_activation: What the network ends in, see :func:`ka_ray.teachers.activations.to_scores`.
        note: What was done to load its checkpoint, for the user; empty if the file was loaded as it is.
    """

    name: str
    classes: tuple[str, ...]
    network: nn.Module
    preprocess: Preprocess
    output: str | int | None = None
    final_activation: str | None = None
    note: str = ""

    def to(self, device: torch.device) -> "Teacher":
        """Move network and preprocessing to a device, in place, and return this teacher."""
        move_network(self.network, device)
        self.preprocess.to(device)
        return self

    def scores(self, images: Tensor) -> Tensor:
        """Return the scores ``[B, K]`` of pixels ``[B, 3, H, W]`` in 0 ... 255, without gradients."""
        # Not inference_mode: joint learning uses these scores in a graph, which refuses inference tensors.
        with torch.no_grad():
            return self._find_scores(self.network(self.preprocess(images)))

    def features(self, images: Tensor, paths: Mapping[str, str]) -> tuple[dict[str, Tensor], Tensor]:
        """Return features and scores, computed in one forward pass.

        Args:
            images: Pixels in 0 ... 255, ``[B, 3, H, W]``.
            paths: Tap name -> path of the tap, as :meth:`resolve_paths` returns it.

        Returns:
            Tap name -> features ``[B, C, *space]``, and the scores ``[B, K]``.
        """
        with torch.inference_mode(), Taps(self.network, paths) as taps:
            output = self.network(self.preprocess(images))
            scores = self._find_scores(output)
        return taps.features, scores

    def find_embedding(self, view: View) -> tuple[str, int] | None:
        """Return the path of the last layer and the size D of the embedding, its input; None if not clear.

        Args:
            view: The pixels that the teacher gets of an image.
        """

        def measure(images: Tensor) -> tuple[str, int] | None:
            path = find_last_layer(self.network, self.preprocess(images), len(self.classes))
            if path is None:
                return None
            with self.read_embedding(path) as read:
                self.scores(images)
            assert read is not None
            return path, read.embedding.shape[1]

        return self._try_images(view, measure, 2)

    def read_embedding(self, path: str | None) -> AbstractContextManager[ReadEmbedding | None]:
        """Read the embedding in the forward passes of a `with` block.

        Args:
            path: Path of the last layer, as :meth:`find_embedding` returns it; None: nothing is read.
        """
        return nullcontext() if path is None else ReadEmbedding(self.network, path)

    def _find_scores(self, output: Any) -> Tensor:
        return to_scores(find_scores(output, len(self.classes), self.output), self.final_activation)

    def resolve_paths(self, view: View, paths: Mapping[str, str]) -> dict[str, str]:
        """Return the taps with the layout of their modules' outputs, see :func:`resolve_tap_paths`.

        Args:
            view: The pixels that the teacher gets of an image.
            paths: Tap name -> path of the tap in the config.

        Raises:
            InputError: A tap does not exist, the layout of its output is not clear, or the network fails.
        """
        # Two images, because a module whose output does not depend on the image would show with two only.
        return self._try_images(
            view, lambda images: resolve_tap_paths(self.network, paths, self.preprocess(images)), 2
        )

    def check_forward_pass(self, view: View, paths: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
        """Run the network on one black image, so that mistakes in the config show before the run starts.

        Args:
            view: The pixels that the teacher gets of an image.
            paths: Tap name -> dotted path of the module whose output is read.

        Returns:
            Tap name -> shape of the features of one image, ``(C, *space)``.

        Raises:
            InputError: A tap does not exist or is not a feature map or vector, the network fails for images
                of this size, or the number of scores differs from the number of classes.
        """
        features, _ = self._try_images(view, lambda images: self.features(images, paths), 1)
        self._check_features(features, paths)
        return {tap: tuple(feature.shape[1:]) for tap, feature in features.items()}

    def _try_images(self, view: View, run: Callable[[Tensor], Result], count: int) -> Result:
        """Run the network on black images; if it fails, raise an InputError that names the teacher."""
        device = self.preprocess.mean.device
        images = torch.zeros(count, *view.shape, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode():
                return run(images)
        except InputError as error:
            raise InputError(_named(self.name, error)) from None
        except Exception as error:  # networks refuse sizes with many exceptions (ViT: AssertionError)
            raise InputError(
                f"teacher {self.name}: the network fails for an image of {view.crop} x {view.crop} pixels: "
                f"{error}. Set `images.size` or the teacher's `preprocessing.size` to the size it was "
                "trained with"
            ) from None

    def _check_features(self, features: Mapping[str, Tensor], paths: Mapping[str, str]) -> None:
        """Refuse taps that were not reached, or whose output is not a feature map or vector."""
        for tap, path in paths.items():
            if tap not in features:
                raise InputError(
                    f"taps.{tap}: the forward pass of teacher {self.name} never calls the module {path!r}; "
                    "choose one that it calls"
                )
        for tap, feature in features.items():
            if feature.dim() not in (2, 4):
                raise InputError(
                    f"taps.{tap}: the module of teacher {self.name} outputs the shape {list(feature.shape)}, "
                    "but a tap needs a map [B, C, height, width] or a vector [B, C]"
                )


def load_teacher(config: TeacherConfig) -> Teacher:
    """Build a teacher's network and load its checkpoint.

    Args:
        config: Section of the teacher in the config.

    Raises:
        InputError: The network is unknown, the config has no checkpoint, or the checkpoint does not fit.
    """
    if config.checkpoint is None:
        raise InputError(_missing_checkpoint(config))
    return build_teacher(config)


def build_teacher(config: TeacherConfig) -> Teacher:
    """Build a teacher like :func:`load_teacher`, but with random weights if it is yet to be trained.

    Taps and shapes do not depend on the weights. So a run can be planned and checked before its teachers are
    trained.

    Args:
        config: Section of the teacher in the config.

    Raises:
        InputError: The network is unknown, the checkpoint does not fit, or the config has neither
            `checkpoint` nor `training`.
    """
    if config.checkpoint is not None:
        check_transform_input(config.network, config.arguments, f"teachers.{config.name}")
    network, note = build_network(config.network, config.arguments, len(config.classes)), ""
    if config.checkpoint is not None:
        note = load_checkpoint(network, config.checkpoint, len(config.classes))
    elif config.training is None:
        raise InputError(_missing_checkpoint(config))
    elif config.training.start is not None:
        new = load_fitting_weights(network, config.training.start)
        note = f"trained from {config.training.start}; new are {', '.join(new) or 'no weights'}"
    network.eval().requires_grad_(False)
    preprocess = Preprocess(config.preprocessing).eval()
    return Teacher(
        config.name, config.classes, network, preprocess, config.output, config.final_activation, note
    )


def _named(name: str, error: InputError) -> str:
    """Name the teacher in an error; an error about a tap names the tap instead."""
    return str(error) if str(error).startswith("taps.") else f"teacher {name}: {error}"


def _missing_checkpoint(config: TeacherConfig) -> str:
    return f"teachers.{config.name}: needs a `checkpoint`, or `training` to train it first"
