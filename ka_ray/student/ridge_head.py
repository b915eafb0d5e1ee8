"""Compute the last layer of a network by ridge regression to the teachers' scores, without a gradient step.

Shapes: B images, D inputs of the last layer, K classes of the student.
"""

from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.ridge import HELD_OUT_FRACTION, solve
from ka_ray.student.trace import eval_mode


def find_linear_head(network: nn.Module, head: Collection[str]) -> str | None:
    """Return the path of the linear layer that gives the scores; None if there is no single one.

    Args:
        network: The student's network.
        head: Names of the weights whose shape depends on the number of classes; see
            :func:`ka_ray.student.start.find_head`.
    """
    paths = {name.rpartition(".")[0] for name in head}
    path = paths.pop() if len(paths) == 1 else None
    return path if path is not None and isinstance(network.get_submodule(path), nn.Linear) else None


@torch.no_grad()
def fit_ridge_head(network: nn.Module, path: str, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set a linear head to the ridge regression of the scores on its inputs, in place.

    The ridge is chosen on every tenth image. The sums are merged over all ranks, which get the same head.

    Args:
        network: The student's network; called in eval mode.
        path: Path of the head, whose outputs are the network's scores.
        batches: Preprocessed images, and the amalgamated scores `[B, K]` to fit.

    Raises:
        InputError: The inputs of the head are not finite.
    """
    layer = network.get_submodule(path)
    assert isinstance(layer, nn.Linear)
    meters = [MomentsMeter(layer.in_features + layer.out_features, layer.weight.device) for _ in range(2)]
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        with eval_mode(network):
            for images, targets in batches:
                network(images)
                samples = torch.cat([inputs.pop(), targets.to(layer.weight.dtype)], dim=1)
                held_out = torch.arange(len(samples)) % round(1 / HELD_OUT_FRACTION) == 0
                for meter, chosen in zip(meters, (~held_out, held_out), strict=True):
                    meter.add(samples[chosen.to(samples.device)])
    finally:
        handle.remove()
    learned_from, judged = (_merge(meter) for meter in meters)
    try:
        solution = solve([learned_from], [judged], layer.out_features, RIDGES)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        # From sums over all ranks, so all ranks raise it.
        raise InputError(f"student.head: ridge: the inputs of {path} are not finite") from None
    layer.weight.copy_(solution.weight[0])
    if layer.bias is not None:
        layer.bias.copy_(solution.bias[0])


RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
"""Candidates for the ridge. Heads have many inputs and few images, so they need more than other layers."""


def _merge(meter: MomentsMeter) -> Moments:
    return meter.total.merge_over_ranks()
