"""Call the network that a learner trains: in mixed precision, and compiled, if the settings ask for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ka_ray.errors import InputError
from ka_ray.numerics.mixed_precision import Precision, autocast


class NetworkCall:
    """A network's forward pass in training, whose scores are always float32 or wider.

    This is no module, so the network's parameters keep their names in the learner that uses it.

    Args:
        network: Network from images to scores.
        amp: Number format of most layers; none: that of the weights. See :class:`torch.autocast`.
        compile: Whether to run the network through :func:`torch.compile`.
    """

    def __init__(self, network: nn.Module, amp: Precision = "none", compile: bool = False) -> None:
        # A compiled function instead of a compiled module: such a module would rename the parameters, and
        # `network.compile()` would also compile the network for others, such as its evaluation.
        call: Callable[[Tensor], Tensor] = lambda images: network(images)  # noqa: E731
        self._call = torch.compile(call) if compile else call
        self._amp = amp

    def __call__(self, images: Tensor) -> Tensor:
        """Return the scores `[B, K]` of images `[B, C, H, W]`."""
        if self._amp == "none":
            return self._call(images)
        with autocast(images.device, self._amp):
            scores = self._call(images)
        # A loss of rounded scores would lose the small differences that it consists of.
        return scores.float()


def check_precision(stage: str, amp: Precision, device: torch.device) -> None:
    """Check that a device can train in a number format.

    Args:
        stage: Name of the stage, for the error message.
        amp: Number format of mixed precision.
        device: Device on which the network is trained.

    Raises:
        InputError: It is fp16, and the device is no GPU.
    """
    if amp == "fp16" and device.type != "cuda":
        raise InputError(
            f"stage {stage}, amp: fp16 needs a GPU, because its gradients are scaled there; it is trained on "
            f"{device.type}. Set amp: bf16, or none"
        )


@contextmanager
def explain_compile_errors(stage: str) -> Iterator[None]:
    """Turn an error of torch's compiler into one for the user.

    The compiler runs at the first step: first for the network, then for its gradient.

    Args:
        stage: Name of the stage.

    Raises:
        InputError: torch.compile failed.
    """
    try:
        yield
    except Exception as error:
        # Their classes are in private modules that take seconds to import.
        packages = {".".join(cls.__module__.split(".")[:2]) for cls in type(error).__mro__}
        if packages.isdisjoint({"torch._dynamo", "torch._inductor"}):
            raise
        # The first line may only say which part of the compiler failed.
        reason = " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
        raise InputError(
            f"stage {stage}, compile: torch.compile cannot compile the network ({reason or error!r}); set "
            "compile: false"
        ) from error
