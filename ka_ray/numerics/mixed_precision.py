"""Automatic mixed precision: the number format in which most layers of a network compute."""

from typing import Literal

import torch

Precision = Literal["none", "bf16", "fp16"]
"""Number format of mixed precision: none (float32), bfloat16 or float16."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Number format of mixed precision -> its type in torch."""


def autocast(device: torch.device, amp: Precision) -> torch.autocast:
    """Return the context in which a network computes in a number format.

    Args:
        device: Device of the network.
        amp: Number format; none: that of the weights.
    """
    return torch.autocast(device.type, DTYPES.get(amp), enabled=amp != "none")
