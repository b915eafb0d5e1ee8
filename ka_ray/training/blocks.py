"""Divide a network into blocks, from the image to the scores, to give each depth a learning rate of its own.

Networks that torch.fx has cut keep the names of their modules, but not their classes. So blocks are found by
names: the members of a numbered sequence, such as ``blocks.3`` or ``layer1.0``, whose own modules are named.
"""

from torch import nn


def find_blocks(network: nn.Module) -> list[list[str]]:
    """Group the trainable parameters of a network by block.

    A block is a residual block, a transformer block or the like. Layers outside of such blocks, and all
    layers of a network without any, are blocks of their own, each together with the norm behind it. The order
    is that in which the modules are registered, which is the order of the computation in networks that
    torch.fx has cut, and nearly always in others. The last block is the layer that gives the scores.

    Args:
        network: Any module, or a module that wraps it.

    Returns:
        Per block, the names of its trainable parameters.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
        >>> find_blocks(network)
        [['0.weight', '0.bias', '1.weight', '1.bias'], ['3.weight', '3.bias']]
    """
    blocks, prefix = list[list[str]](), ""
    root = network
    while len(inner := _trainable_children(root)) == 1 and not _own_parameters(root):
        ((name, root),) = inner.items()  # a wrapper
        prefix += f"{name}."
    # A sequence of a backbone and a head is no sequence of blocks.
    for names in _blocks(root, prefix, _is_sequence_of_blocks(root, at_least=2)):
        # A norm belongs to the layer before it, as in its initial scale.
        only_vectors = all(network.get_parameter(name).ndim <= 1 for name in names)
        if only_vectors and blocks:
            blocks[-1] += names
        else:
            blocks.append(names)
    return blocks


def _blocks(module: nn.Module, prefix: str, is_sequence: bool) -> list[list[str]]:
    """Return the parameters of each block of a module, whose names begin with the prefix."""
    own = [prefix + name for name in _own_parameters(module)]
    blocks = list[list[str]]()
    for name, child in _trainable_children(module).items():
        path = f"{prefix}{name}."
        if is_sequence and not _has_blocks(child):
            blocks.append([path + inner for inner, p in child.named_parameters() if p.requires_grad])
        else:
            blocks += _blocks(child, path, _is_sequence_of_blocks(child))
    if not own:
        return blocks
    # Parameters of a network itself, such as the embeddings of positions, are those of its input.
    return [own + blocks[0], *blocks[1:]] if blocks else [own]


def _own_parameters(module: nn.Module) -> list[str]:
    return [name for name, p in module.named_parameters(recurse=False) if p.requires_grad]


def _trainable_children(module: nn.Module) -> dict[str, nn.Module]:
    return {
        name: child
        for name, child in module.named_children()
        if any(parameter.requires_grad for parameter in child.parameters())
    }


def _has_blocks(module: nn.Module) -> bool:
    return any(_is_sequence_of_blocks(inner) for inner in module.modules())


def _is_sequence_of_blocks(module: nn.Module, at_least: int = 1) -> bool:
    """Return whether a module's children are numbered, and at least half of them have named children.

    Half, because sequences can begin and end with single layers. Convolutions and norms that are numbered
    inside of a block have numbered children, or none.
    """
    children = _trainable_children(module)
    # The names in a ModuleDict are the user's: those of taps.
    if isinstance(module, nn.ModuleDict) or not all(name[-1].isdigit() for name in children):
        return False
    named = [any(not name.isdigit() for name in _trainable_children(child)) for child in children.values()]
    return sum(named) >= max(at_least, len(named) / 2)
