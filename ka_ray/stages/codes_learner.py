"""The learner of the codes: one link of every tap's chain of auto-encoders, all side by side.

Shapes: B images, S stacked channels, C code channels, *space height and width, n positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ka_ray.amalgamation import METHODS, Amalgamation, LinkLearner
from ka_ray.errors import InputError
from ka_ray.numerics.moments import Moments, MomentsMeter
from ka_ray.numerics.named_moments import merge_moments_over_ranks
from ka_ray.numerics.positions import sample_features
from ka_ray.training.batches import Batches


class CodesLearner(nn.Module):
    """Trains one link of every tap's chain, side by side, on a random sample of positions.

    A 1x1 conv sees one position at a time, so a random sample of each image's positions is an unbiased
    and far smaller training set than its whole maps. The links before are frozen and give the input.

    Args:
        method: A key of :data:`ka_ray.amalgamation.METHODS`.
        moments: tap -> moments of its stacked features.
        amalgamations: tap -> :class:`ka_ray.amalgamation.Amalgamation`, whose links before are trained.
        channels: tap -> each teacher's channels.
        link: The number of the link to train.
    """

    def __init__(
        self,
        method: str,
        moments: Mapping[str, Moments],
        amalgamations: nn.ModuleDict,
        channels: Mapping[str, Sequence[int]],
        link: int,
    ) -> None:
        super().__init__()
        self.link = link
        self.amalgamations = amalgamations.requires_grad_(False)
        self.learners = nn.ModuleDict()
        for tap, part in moments.items():
            amalgamation = self._amalgamation(tap)
            with _naming(tap):
                self.learners[tap] = METHODS[method].learner(
                    amalgamation.link_moments(part, link), channels[tap], amalgamation.code_channels
                )

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give each tap's loss on its sampled positions ``[n, S]``."""
        return {
            tap: learner(self._amalgamation(tap).link_input(batch[tap], self.link))
            for tap, learner in self.learners.items()
        }

    def finish(self) -> None:
        """Put what was learned into the link of every tap's chain."""
        for tap, learner in self.learners.items():
            link = self._amalgamation(tap).links[self.link]
            link.load_state_dict(cast(LinkLearner, learner).to_autoencoder().state_dict())

    def _amalgamation(self, tap: str) -> Amalgamation:
        return cast(Amalgamation, self.amalgamations[tap])


def build_amalgamations(
    method: str, channels: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> nn.ModuleDict:
    """Build untrained amalgamations, to learn or to load a stage into.

    Args:
        method: A key of :data:`ka_ray.amalgamation.METHODS`.
        channels: tap -> each teacher's channels.
        widths: tap -> C.

    Raises:
        InputError: A code is too wide for the method.
    """
    amalgamations = nn.ModuleDict()
    for tap, counts in channels.items():
        with _naming(tap):
            amalgamations[tap] = Amalgamation(METHODS[method].spans(counts), widths[tap])
    return amalgamations


@contextmanager
def _naming(tap: str) -> Iterator[None]:
    """Say at which tap a mistake was made."""
    try:
        yield
    except InputError as error:
        raise InputError(f"taps.{tap}: {error}") from None


def standardise(amalgamations: nn.ModuleDict, moments: Mapping[str, Moments]) -> None:
    """Bring every tap's code to a mean variance of 1, for layers to be learned at one rate."""
    for tap, part in moments.items():
        cast(Amalgamation, amalgamations[tap]).standardise(part)


class TapMomentsMeter:
    """Adds up the stacked features of every tap.

    Args:
        stacked: tap -> S.
        positions_per_image: At most so many positions of each map count; None: all.
        activations: tap -> what the features are seen through; taps without are taken as they are.
        device: Where it is summed.
    """

    def __init__(
        self,
        stacked: Mapping[str, int],
        positions_per_image: int | None = None,
        activations: Mapping[str, nn.Module] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._activations, self._positions = dict(activations or {}), positions_per_image
        self._meters = {tap: MomentsMeter(channels, device) for tap, channels in stacked.items()}

    @torch.no_grad()
    def add(self, batch: Mapping[str, Tensor]) -> None:
        """Add a batch: each tap's ``[B, S, *space]`` and, to sample positions, ``draws [B, 1 or more]``."""
        for tap, meter in self._meters.items():
            features = self._activations[tap](batch[tap]) if tap in self._activations else batch[tap]
            if self._positions is not None:
                features = sample_features(features, batch["draws"][:, 0], self._positions)
            meter.add(features)

    @property
    def total(self) -> dict[str, Moments]:
        """tap -> moments of all that was added."""
        return {tap: meter.total for tap, meter in self._meters.items()}


def measure_moments(
    batches: Batches,
    stacked: Mapping[str, int],
    positions_per_image: int | None = None,
    activations: Mapping[str, nn.Module] | None = None,
) -> dict[str, Moments]:
    """Accumulate the moments of every tap over every stored image, on all ranks.

    Args:
        batches: Gives each row once over all ranks; with a draw, where positions are sampled.
        stacked: tap -> S.
        positions_per_image: At most so many positions of each map count; None: all.
        activations: tap -> what the features are seen through.

    Returns:
        tap -> moments of its stacked features.

    Raises:
        InputError: The features of a tap never vary.
    """
    meter = TapMomentsMeter(stacked, positions_per_image, activations, batches.device)
    for batch in batches.single_pass():
        meter.add(batch)
    merged = merge_moments_over_ranks(meter.total)
    check_variances(merged)
    return merged


def check_variances(moments: Mapping[str, Moments]) -> None:
    """Refuse features that never vary, naming the tap; see :meth:`Moments.check_variance`."""
    for tap, part in moments.items():
        with _naming(tap):
            part.check_variance()
