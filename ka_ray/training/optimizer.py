"""The optimizer: groups of parameters with their own learning rate and weight decay, and the schedule."""

import math

import torch
from torch import nn

from ka_ray.training.blocks import find_blocks
from ka_ray.training.settings import FitSettings

RATE_FACTOR = "rate_factor"
"""Key of an optimizer's parameter group: the group's learning rate as a multiple of the schedule's."""


def build_optimizer(learner: nn.Module, settings: FitSettings) -> torch.optim.AdamW:
    """Build AdamW with one group of parameters per learning rate and weight decay.

    Learning rates can fall from the scores to the image, see :func:`find_rate_factors`. Weight decay leaves
    out vectors (biases, weights of norms, scales of layers), unless the settings include them.

    Args:
        learner: Module whose parameters are trained, except for frozen ones.
        settings: Settings of the training loop.
    """
    factors = find_rate_factors(learner, settings.layer_decay) if settings.layer_decay < 1 else {}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad:
            decayed = settings.decay_biases or parameter.ndim > 1
            key = factors.get(name, 1.0), settings.weight_decay if decayed else 0.0
            groups.setdefault(key, []).append(parameter)
    options = [
        {"params": parameters, RATE_FACTOR: factor, "weight_decay": decay}
        for (factor, decay), parameters in groups.items()
    ]
    # One kernel for all parameters, which is faster on a CPU, too.
    return torch.optim.AdamW(options, settings.learning_rate, (0.9, settings.beta2), fused=True)


def find_rate_factors(network: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return the factor of each trainable parameter's learning rate: ``layer_decay ** d``.

    Here d is the number of blocks between the parameter's own and the scores, 0 for the last block. This is
    called layer-wise learning rate decay or discriminative fine-tuning (Howard and Ruder, ACL 2018).

    Args:
        network: Any module, or a module that wraps it.
        layer_decay: Factor per block, in (0, 1].

    Returns:
        Name of the parameter -> factor.

    Example:
        >>> find_rate_factors(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), 0.5)
        {'1.weight': 1.0, '1.bias': 1.0, '0.weight': 0.5, '0.bias': 0.5}
    """
    blocks = reversed(find_blocks(network))
    return {name: layer_decay**depth for depth, names in enumerate(blocks) for name in names}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group of parameters to a rate times the group's own factor.

    Args:
        optimizer: Optimizer that :func:`build_optimizer` has built.
        rate: Learning rate of the parameters in the last block.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group[RATE_FACTOR]


def learning_rate_factor(step: int, total_steps: int, warmup: float = 0.1) -> float:
    """Return the learning rate of a step as a fraction of its peak: linear warm-up, then a half cosine.

    Args:
        step: Number of the step, from 0.
        total_steps: Number of steps over all epochs.
        warmup: Fraction of all steps during which the rate rises, in [0, 1). 0: the first step has the peak.

    Example:
        >>> [round(learning_rate_factor(step, 20), 2) for step in (0, 1, 2, 11, 19)]
        [0.5, 1.0, 1.0, 0.5, 0.01]
    """
    warmup_steps = max(1, round(warmup * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
