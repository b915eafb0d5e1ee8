"""Undo the activation in which a network ends, so that the scores of all teachers are comparable."""

from torch import Tensor

SMALLEST = 1e-7
"""Probabilities are clamped to SMALLEST ... 1 - SMALLEST, because 0 and 1 have no finite logarithm."""


def to_scores(outputs: Tensor, final_activation: str | None) -> Tensor:
    """Return the scores whose softmax or sigmoid a network outputs.

    Args:
        outputs: What the network outputs, ``[B, K]``.
        final_activation: ``softmax``, ``log_softmax`` or ``sigmoid``; None: the outputs are scores already.

    Returns:
        Scores, ``[B, K]``. After a softmax they are known except for a constant per image, which the softmax
        has removed; their own softmax is the network's output.
    """
    if final_activation == "softmax":
        return outputs.clamp(min=SMALLEST).log()
    if final_activation == "sigmoid":
        return outputs.clamp(SMALLEST, 1 - SMALLEST).logit()
    return outputs


def recognise_activation(outputs: Tensor, tolerance: float = 1e-3) -> str | None:
    """Return the activation in which a network seems to end, judged by its outputs for several images.

    Args:
        outputs: What the network outputs, ``[B, K]``.
        tolerance: How far the sum of an image's probabilities may be from 1.

    Returns:
        ``softmax``, ``log_softmax`` or ``sigmoid``; None: the outputs are scores.
    """
    outputs = outputs.double()
    if outputs.min() >= 0 and outputs.max() <= 1:
        sums_to_one = (outputs.sum(dim=1) - 1).abs().max() <= tolerance
        return "softmax" if sums_to_one else "sigmoid"
    if outputs.max() <= 0 and (outputs.exp().sum(dim=1) - 1).abs().max() <= tolerance:
        return "log_softmax"
    return None
