"""Move the weights of a whole network into the student, which is the same network cut into stages.

Students of a family have no batch norms: theirs are folded into the layers before them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ka_ray.errors import InputError
from ka_ray.student.network import Student

Layer = nn.Conv2d | nn.Linear


def transfer_weights(network: nn.Module, student: Student) -> None:
    """Load the weights of a network into a student of the same architecture, in place.

    Args:
        network: The network before it is cut; it stays unchanged.
        student: The student. In eval mode it then computes the same as the network.

    Raises:
        InputError: A layer of the student has another width.
    """
    if student.spec.is_family:
        _transfer_folded(network, student)
    else:
        _transfer_by_name(network, student)


CONSTANT = "_tensor_constant"
"""How torch.fx names a tensor that a network computes with and does not list: the student has it already."""


def _transfer_by_name(network: nn.Module, student: Student) -> None:
    source, target = network.state_dict(), student.state_dict()
    for key in target:
        _, tap, path = key.split(".", 2)
        if tap in student.kept_adapters:  # a stage is then a sequence of the network's part and the adapter
            part, _, path = path.partition(".")
            if part == "adapter":
                continue  # it begins as the identity
        if path in source or not path.rpartition(".")[2].startswith(CONSTANT):
            target[key] = source[path]
    student.load_state_dict(target)


def _transfer_folded(network: nn.Module, student: Student) -> None:
    layers = [module for module in student.stages.modules() if isinstance(module, Layer)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, _fold_chain(network), strict=True):
            if layer.weight.shape != weight.shape:
                raise InputError(
                    f"student.start: a layer of the student has the shape {list(layer.weight.shape)}, that "
                    f"of its start {list(weight.shape)}; leave out codes.widths, or start from random"
                )
            layer.weight.copy_(weight)
            if layer.bias is not None:
                layer.bias.copy_(bias)


def _fold_chain(network: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield weight and bias of each layer of a chain, with the batch norm behind it folded in."""
    modules = [m for m in network.modules() if isinstance(m, Layer | nn.BatchNorm2d)]
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(module, nn.BatchNorm2d):
            continue
        weight, bias = module.weight, module.bias
        if isinstance(following, nn.BatchNorm2d):
            assert following.running_mean is not None
            assert following.running_var is not None
            weight, bias = fuse_conv_bn_weights(
                weight,
                bias,
                following.running_mean,
                following.running_var,
                following.eps,
                following.weight,
                following.bias,
            )
        yield weight, weight.new_zeros(len(weight)) if bias is None else bias
