"""Give a traced network its batch norms back.

Classes that extend torch's batch norm, such as timm's BatchNormAct2d, are traced through, in eval mode. What
is left of them is a call of ``batch_norm`` with ``training=False``, which never measures and never updates.
"""

from torch import fx, nn
from torch.nn import functional


def restore_batch_norms(stage: fx.GraphModule, network: nn.Module) -> None:
    """Replace traced calls of ``batch_norm`` by modules of torch, in place, under the same names.

    The modules share weights and buffers with those of the network, and keep what the stage has of their
    children, such as the activation behind the norm.

    Args:
        stage: Traced part of the network. Of a module that was traced through, it has only what is used.
        network: The network.
    """
    for node in list(stage.graph.nodes):
        path = _find_norm_path(node)
        own = network.get_submodule(path) if path else None
        if not isinstance(own, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        kind = nn.BatchNorm2d if isinstance(own, nn.BatchNorm2d) else nn.BatchNorm1d
        norm = kind(own.num_features, own.eps, own.momentum, own.affine)
        norm.weight, norm.bias, norm.training = own.weight, own.bias, own.training
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(norm, name, getattr(own, name))
        for name, child in stage.get_submodule(path).named_children():
            norm.add_module(name, child)
        stage.set_submodule(path, norm)
        with stage.graph.inserting_before(node):
            call = stage.graph.call_module(path, (node.args[0],))
        node.replace_all_uses_with(call)
        stage.graph.erase_node(node)
    stage.graph.eliminate_dead_code()
    stage.recompile()


def _find_norm_path(node: fx.Node) -> str:
    """Return the path of the module whose running mean a call of ``batch_norm`` reads; empty for others."""
    if node.target is not functional.batch_norm or len(node.args) < 2:
        return ""
    mean = node.args[1]  # the weight would do as well, but a norm may have none
    return str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""
