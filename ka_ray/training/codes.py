"""The learner of the codes: one auto-encoder a tap, all side by side.

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import METHODS, AutoEncoder, Moments, WhitenedAutoEncoder
from ka_ray.errors import InputError
from ka_ray.training.batches import Batches


class CodesLearner(nn.Module):
    """Auto-encoders trained on a random sample of positions.

    A 1x1 conv sees one position at a time, so a random sample of each image's positions is an unbiased
    and far smaller training set than its whole maps.

    Args:
        method: A key of :data:`ka_ray.amalgamation.METHODS`.
        moments: tap -> moments of its stacked features.
        widths: tap -> C.
    """

    def __init__(self, method: str, moments: Mapping[str, Moments], widths: Mapping[str, int]) -> None:
        super().__init__()
        self.taps = nn.ModuleDict({tap: METHODS[method](part, widths[tap]) for tap, part in moments.items()})

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each tap's loss on its sampled positions ``[n, S]``."""
        return {tap: learner(batch[tap]) for tap, learner in self.taps.items()}

    def collapse(self) -> nn.ModuleDict:
        """Give the auto-encoders on raw features: tap -> :class:`ka_ray.amalgamation.AutoEncoder`."""
        return nn.ModuleDict(
            {tap: cast(WhitenedAutoEncoder, learner).collapse() for tap, learner in self.taps.items()}
        )


def empty_autoencoders(stacked: Mapping[str, int], widths: Mapping[str, int]) -> nn.ModuleDict:
    """Build untrained auto-encoders to load a stage into: tap -> S and tap -> C."""
    return nn.ModuleDict({tap: AutoEncoder(channels, widths[tap]) for tap, channels in stacked.items()})


def measure_moments(batches: Batches, stacked: Mapping[str, int]) -> dict[str, Moments]:
    """Accumulate the moments of every tap over every stored image and position, on all ranks.

    Args:
        batches: Gives each row once over all ranks.
        stacked: tap -> S.
    """
    moments = {tap: Moments.empty(channels, batches.device) for tap, channels in stacked.items()}
    with torch.no_grad():
        for batch in batches.once():
            moments = {tap: moments[tap].merge(Moments.of(batch[tap])) for tap in stacked}
        merged = {tap: part.merge_over_ranks() for tap, part in moments.items()}
    for tap, part in merged.items():
        try:
            part.check_variance()
        except InputError as error:
            raise InputError(f"taps.{tap}: {error}") from None
    return merged
