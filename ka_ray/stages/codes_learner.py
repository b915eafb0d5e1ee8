"""Train one link of each tap's chain of auto-encoders, all taps side by side.

A chain turns the stacked features of a tap into its code. The methods ``direct`` and ``common_features`` have
a single link; ``incremental`` has one for the first two teachers and one for each further teacher.

Shapes: B images, S stacked channels, C code channels, ``*space`` height and width, n positions.
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
    """Learner of one link of each tap's chain, on a random sample of positions.

    A 1x1 conv reads one position at a time. So a random sample of each image's positions is an unbiased
    training set that is much smaller than the whole maps. The earlier links are frozen and compute the input.

    Args:
        method: Method of amalgamation, a key of :data:`ka_ray.amalgamation.METHODS`.
        moments: Tap name -> moments (count, mean and scatter matrix) of its stacked features.
        amalgamations: Tap name -> :class:`ka_ray.amalgamation.Amalgamation` whose earlier links are trained.
        channels: Tap name -> number of channels of each teacher.
        link: Number of the link to train, from 0.
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
        # Frozen, because a link is trained in another parametrisation (see LinkLearner) and written back
        # later.
        self.amalgamations = amalgamations.requires_grad_(False)
        self.learners = nn.ModuleDict()
        for tap, part in moments.items():
            amalgamation = self._amalgamation(tap)
            with _tap_in_message(tap):
                self.learners[tap] = METHODS[method].learner(
                    amalgamation.link_moments(part, link), channels[tap], amalgamation.code_channels
                )

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each tap.

        Args:
            batch: Tap name -> stacked features at sampled positions, ``[n, S]``.
        """
        return {
            tap: learner(self._amalgamation(tap).link_input(batch[tap], self.link))
            for tap, learner in self.learners.items()
        }

    def write_back_links(self) -> None:
        """Write the trained weights into the link of each tap's chain."""
        for tap, learner in self.learners.items():
            link = self._amalgamation(tap).links[self.link]
            link.load_state_dict(cast(LinkLearner, learner).to_autoencoder().state_dict())

    def _amalgamation(self, tap: str) -> Amalgamation:
        return cast(Amalgamation, self.amalgamations[tap])


def build_amalgamations(
    method: str, channels: Mapping[str, Sequence[int]], widths: Mapping[str, int]
) -> nn.ModuleDict:
    """Build untrained chains of auto-encoders, to be trained or to load weights into.

    Args:
        method: Method of amalgamation, a key of :data:`ka_ray.amalgamation.METHODS`.
        channels: Tap name -> number of channels of each teacher.
        widths: Tap name -> number of code channels, C.

    Returns:
        Tap name -> :class:`ka_ray.amalgamation.Amalgamation`.

    Raises:
        InputError: A code is too wide for the method.
    """
    amalgamations = nn.ModuleDict()
    for tap, counts in channels.items():
        with _tap_in_message(tap):
            spans = METHODS[method].spans(counts)  # number of stacked channels that each link adds
            amalgamations[tap] = Amalgamation(spans, widths[tap])
    return amalgamations


@contextmanager
def _tap_in_message(tap: str) -> Iterator[None]:
    """Put the name of the tap in front of the message of an input error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"taps.{tap}: {error}") from None


def standardise_codes(amalgamations: nn.ModuleDict, moments: Mapping[str, Moments]) -> None:
    """Scale each tap's code to variance 1 (mean over channels), so that one learning rate suits all layers.

    Args:
        amalgamations: Tap name -> :class:`ka_ray.amalgamation.Amalgamation`; its scale is set in place.
        moments: Tap name -> moments of its stacked features.
    """
    for tap, part in moments.items():
        cast(Amalgamation, amalgamations[tap]).standardise(part)


class TapMomentsMeter:
    """Accumulator of the moments of each tap's stacked features, batch by batch.

    Args:
        stacked: Tap name -> number of stacked channels, S.
        positions_per_image: Maximum number of positions per map, drawn at random. None: all positions.
        activations: Tap name -> module that is applied to the features first. Other taps' features are used
            as they are. None: no activations.
        device: Device on which the sums are kept.
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
        """Add a batch: ``[B, S, *space]`` per tap.

        To sample positions, it also needs ``draws [B, 1 or more]``, uniform random numbers of each image.
        """
        for tap, meter in self._meters.items():
            features = self._activations[tap](batch[tap]) if tap in self._activations else batch[tap]
            if self._positions is not None:
                features = sample_features(features, batch["draws"][:, 0], self._positions)
            meter.add(features)

    @property
    def total(self) -> dict[str, Moments]:
        """Tap name -> moments of all batches so far."""
        return {tap: meter.total for tap, meter in self._meters.items()}


def measure_moments(
    batches: Batches,
    stacked: Mapping[str, int],
    positions_per_image: int | None = None,
    activations: Mapping[str, nn.Module] | None = None,
) -> dict[str, Moments]:
    """Measure the moments of each tap's stacked features over all stored images and all ranks.

    Args:
        batches: Batches with a column per tap; to sample positions, also with the column ``draws``, which
            :class:`ka_ray.training.batches.Batches` adds if its ``num_draws`` is at least 1.
        stacked: Tap name -> number of stacked channels, S.
        positions_per_image: Maximum number of positions per map, drawn at random. None: all positions.
        activations: Tap name -> module that is applied to the features first. None: no activations.

    Returns:
        Tap name -> moments of its stacked features, the same on all ranks.

    Raises:
        InputError: The features of a tap are constant.
    """
    meter = TapMomentsMeter(stacked, positions_per_image, activations, batches.device)
    for batch in batches.single_pass():
        meter.add(batch)
    # Checked on the sum of all ranks, because features may be constant on a single one.
    merged = merge_moments_over_ranks(meter.total)
    check_variances(merged)
    return merged


def check_variances(moments: Mapping[str, Moments]) -> None:
    """Raise an InputError that names the tap if its features are constant.

    Args:
        moments: Tap name -> moments of its stacked features.
    """
    for tap, part in moments.items():
        with _tap_in_message(tap):
            part.check_variance()
