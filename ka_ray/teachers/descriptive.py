"""A network that is nobody's teacher: its embeddings describe images to a gate.

Shapes: B images, H and W in pixels, D channels of the embedding.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ka_ray.config import DESCRIPTIVE, DescriptiveConfig
from ka_ray.errors import InputError
from ka_ray.images.views import View
from ka_ray.numerics.memory_format import move_network
from ka_ray.teachers.checkpoint import checkpoint_digest, load_checkpoint
from ka_ray.teachers.checkpoint_file import read_checkpoint
from ka_ray.teachers.last_layer import ReadEmbedding, find_last_layer
from ka_ray.teachers.networks import STUDENT_NETWORK, build_network, check_transform_input
from ka_ray.teachers.outputs import LOGITS
from ka_ray.teachers.preprocess import Preprocess
from ka_ray.teachers.sources.recognise import count_classes
from ka_ray.teachers.state_dict import find_weights

KEY = f"scores.{DESCRIPTIVE}"
"""Where the network stands in the config, for messages."""

OUTPUT = ""
"""Instead of the path of a last layer: the embedding is what the network returns."""

LIBRARY_CLASSES = 1000
"""Number of classes that a network is built with if no number fits its checkpoint, to say how they differ."""


@dataclass
class DescriptiveNetwork:
    """A frozen network in eval mode with its preprocessing.

    Attributes:
        network: Network from preprocessed images to scores or embeddings.
        preprocess: Module that turns pixels into the network's input.
        num_classes: How many classes its head has; 0: it has no head; None: its factory does not say it.
        note: What was done to load its checkpoint, for the user; empty if the file was loaded as it is.
    """

    network: nn.Module
    preprocess: Preprocess
    num_classes: int | None
    note: str = ""

    def to(self, device: torch.device) -> "DescriptiveNetwork":
        """Move network and preprocessing to a device, in place, and return this object."""
        move_network(self.network, device)
        self.preprocess.to(device)
        return self

    def embed(self, images: Tensor, path: str) -> Tensor:
        """Return the embeddings `[B, D]`.

        Args:
            images: Pixels in 0 ... 255, `[B, C, H, W]`.
            path: Where they are, as :meth:`find_embedding` returns it.
        """
        with torch.inference_mode():
            inputs = self.preprocess(images)
            if path == OUTPUT:
                return _find_vectors(self.network(inputs))
            with ReadEmbedding(self.network, path) as read:
                self.network(inputs)
        return read.embedding

    def find_embedding(self, view: View) -> tuple[str, int]:
        """Return the path of the last layer, whose input is the embedding, and D.

        The path is :data:`OUTPUT` if the network has no head. Of a factory's network it is not known whether
        it has one: then a linear layer whose output is what the network returns, but for a softmax or a
        sigmoid, is its head.

        Args:
            view: The pixels that the network gets of an image.

        Raises:
            InputError: The network fails for images of this size, or it is not clear what its embedding is.
        """
        generator = torch.Generator().manual_seed(0)  # noise, so that no two layers agree by chance
        images = torch.randint(256, (2, *view.shape), generator=generator, dtype=torch.uint8)
        try:
            path = self._find_path(images)
            return path, self.embed(images, path).shape[1]
        except InputError as error:
            raise InputError(f"{KEY}: {error}") from None
        except Exception as error:  # networks refuse sizes with many exceptions
            raise InputError(
                f"{KEY}: the network fails for an image of {view.crop} x {view.crop} pixels: {error}. Set "
                "its preprocessing.size to the size it was trained with"
            ) from None

    def _find_path(self, images: Tensor) -> str:
        with torch.inference_mode():
            inputs = self.preprocess(images)
            if self.num_classes == 0:
                return OUTPUT
            vectors = _find_vectors(self.network(inputs))
            path = find_last_layer(self.network, inputs, vectors.shape[1])
            if self.num_classes is None:
                return OUTPUT if path is None or not self._is_head(path, inputs, vectors) else path
        if path is None:
            raise InputError(
                "its last layer has not one output per class, so that the layer's input is not clear; give a "
                "network without a head, such as one of timm with arguments: {num_classes: 0}"
            )
        return path

    def _is_head(self, path: str, inputs: Tensor, vectors: Tensor) -> bool:
        outputs: list[Tensor] = []
        layer = self.network.get_submodule(path)
        handle = layer.register_forward_hook(lambda module, given, output: outputs.append(output))
        try:
            self.network(inputs)
        finally:
            handle.remove()
        found = outputs[0].flatten(1)
        same = (found, found.softmax(1), found.log_softmax(1), found.sigmoid())
        return found.shape == vectors.shape and any(
            torch.allclose(one, vectors, rtol=1e-4, atol=1e-6) for one in same
        )


def _find_vectors(output: Any) -> Tensor:
    """Return the vectors `[B, D]` that a network returns, or raise an error."""
    if isinstance(output, Mapping):
        output = output.get(LOGITS, output)
    found = output if isinstance(output, Tensor) else getattr(output, LOGITS, None)
    if isinstance(found, Tensor) and found.dim() == 2:
        return found
    what = f"the shape {list(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
    raise InputError(
        f"the network returns {what}, so that it is not clear what describes an image; give a network, or a "
        "factory of your own, that returns one vector [B, D] per image"
    )


def load_descriptive(config: DescriptiveConfig) -> DescriptiveNetwork:
    """Build the network and load its checkpoint.

    Args:
        config: The section of the network, described key by key.

    Raises:
        InputError: The network is unknown, its checkpoint does not fit, or its factory, without a checkpoint,
            makes other weights at each call.
    """
    try:
        network, num_classes, note = _build(config)
    except InputError as error:
        raise InputError(str(error) if str(error).startswith(KEY) else f"{KEY}: {error}") from None
    network.eval().requires_grad_(False)
    return DescriptiveNetwork(network, Preprocess(config.preprocessing).eval(), num_classes, note)


def _build(config: DescriptiveConfig) -> tuple[nn.Module, int | None, str]:
    """Return the network, the number of its classes as :class:`DescriptiveNetwork` has it, and a note."""
    is_factory = ":" in config.network and config.network != STUDENT_NETWORK
    if config.checkpoint is None:
        if not is_factory:
            raise InputError("checkpoint: is missing, and random weights describe nothing")
        return _build_with_own_weights(config), None, "its weights are those that its factory makes"
    check_transform_input(config.network, config.arguments, KEY)
    num_classes = None if is_factory else _count_classes(config)
    built_with = LIBRARY_CLASSES if num_classes is None else num_classes
    network = build_network(config.network, config.arguments, built_with)
    return network, num_classes, load_checkpoint(network, config.checkpoint)


def _count_classes(config: DescriptiveConfig) -> int:
    given = config.arguments.get("num_classes")
    if given is not None:
        return int(given)
    assert config.checkpoint is not None
    weights = find_weights(read_checkpoint(config.checkpoint))
    found = count_classes(config.network, config.arguments, weights)
    return LIBRARY_CLASSES if found is None else found


def _build_with_own_weights(config: DescriptiveConfig) -> nn.Module:
    """Build a factory's network twice: every process builds it anew, and all must have the same weights."""
    first, second = (build_network(config.network, config.arguments, 0) for _ in range(2))
    if digest_weights(first) != digest_weights(second):
        raise InputError(
            f"checkpoint: is missing, and the factory {config.network} makes other weights at each call; "
            "give `checkpoint`, or let the factory load trained weights"
        )
    return first


def digest_weights(network: nn.Module) -> str:
    """Return the SHA-256 digest of a network's weights in hexadecimal.

    Args:
        network: The network, on any device.
    """
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(raw.tobytes())
    return digest.hexdigest()


def digest_descriptive(config: DescriptiveConfig) -> str:
    """Return by what the weights are recognised: the digest of the checkpoint, or of what a factory makes.

    Args:
        config: The section of the network, described key by key.
    """
    if config.checkpoint is not None:
        return checkpoint_digest(config.checkpoint)
    return digest_weights(load_descriptive(config).network)
