"""Give weights the versions of a network's modules, which torch keeps beside a state dict."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def with_versions(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return weights with the versions of a network's modules, as its own ``state_dict`` has them.

    Files have no versions, and torchvision's mnasnet loads no weights without them.

    Args:
        tensors: Name of each weight -> tensor.
        network: The network that will load them.
    """
    result = OrderedDict(tensors)
    versions: Any = network.state_dict()
    result._metadata = versions._metadata  # type: ignore[attr-defined]  # where torch looks for them
    return result
