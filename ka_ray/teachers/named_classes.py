"""Networks that know classes by their names, as those of images and text do (CLIP, SigLIP).

Shapes: B images, C classes, D channels of the embedding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.teachers.descriptive import KEY

METHOD = "score_classes"
"""Name of the method by which a descriptive network says how well names of classes fit images."""


def score_classes(network: nn.Module, embeddings: Tensor, classes: Sequence[str]) -> Tensor | None:
    """Return logits of classes by their names; None if the network knows no names.

    It knows them if it has the method ``score_classes(embeddings, classes)``. The method decides which
    sentence it makes of a name, and the temperature of its logits.

    Args:
        network: The descriptive network.
        embeddings: `[B, D]`, what it made of images, in any dtype.
        classes: Names of the classes, as the config has them.

    Returns:
        `[B, C]` in float32 on the CPU.

    Raises:
        InputError: The method fails, or returns something else.
    """
    method = getattr(network, METHOD, None)
    if method is None:
        return None
    try:
        with torch.inference_mode():
            logits = method(embeddings.float(), list(classes))
    except Exception as error:  # code of the user's
        raise InputError(f"{KEY}: {METHOD} of the network fails: {error}") from error
    wanted = [len(embeddings), len(classes)]
    if not isinstance(logits, Tensor) or list(logits.shape) != wanted:
        what = f"the shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{KEY}: {METHOD} of the network returns {what} instead of {wanted}, images x classes"
        )
    if not logits.isfinite().all():
        raise InputError(f"{KEY}: {METHOD} of the network returns logits that are not finite")
    return logits.float().cpu()
