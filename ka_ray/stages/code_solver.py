"""Compute auto-encoders in closed form instead of training them.

Each tap has a chain of auto-encoders, its links; see :class:`ka_ray.amalgamation.Amalgamation`.
"""

import time
from collections.abc import Mapping
from typing import cast

from torch import nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.amalgamation.closed_form import fit_channel_autoencoder, fit_pca_autoencoder
from ka_ray.numerics.channel_selection import LayerInputStats, choose_channels
from ka_ray.numerics.moments import Moments


def solve_link(
    amalgamation: Amalgamation,
    link: int,
    moments: Moments,
    next_layer_stats: LayerInputStats | None = None,
) -> None:
    """Compute one link of a chain. The links before it must already be known.

    Args:
        amalgamation: Chain of auto-encoders of a tap; its link is set in place.
        link: Number of the link in the chain, from 0.
        moments: Moments of the tap's stacked features.
        next_layer_stats: Covariances of the stacked channels as the next layer receives them. Then the code
            is a choice of those channels that matter most to that layer. None: the code is the principal
            subspace.
    """
    joined = amalgamation.link_moments(moments, link)
    if next_layer_stats is None:
        autoencoder = fit_pca_autoencoder(joined, amalgamation.code_channels)
    else:
        # The code of the link before consists of chosen stacked channels, too. So this link chooses among
        # those channels and the ones that it adds.
        candidates = next_layer_stats.select_channels(amalgamation.input_channels(link))
        chosen = choose_channels(candidates, amalgamation.code_channels)
        autoencoder = fit_channel_autoencoder(joined, chosen)
    amalgamation.links[link].load_state_dict(autoencoder.state_dict())


def solve_links(
    amalgamations: nn.ModuleDict,
    links: range,
    moments: Mapping[str, Moments],
    next_layer_stats: Mapping[str, LayerInputStats],
) -> list[float]:
    """Compute links of each tap's chain.

    Args:
        amalgamations: Tap name -> :class:`ka_ray.amalgamation.Amalgamation`; its links are set in place.
        links: Numbers of the links to compute. The links before them must already be known.
        moments: Tap name -> moments of its stacked features.
        next_layer_stats: Tap name -> covariances of its stacked channels as the next layer receives them.
            Empty for codes that are principal subspaces.

    Returns:
        Seconds per link, over all taps.
    """
    seconds = []
    for link in links:
        began = time.perf_counter()
        for tap, part in moments.items():
            solve_link(cast(Amalgamation, amalgamations[tap]), link, part, next_layer_stats.get(tap))
        seconds.append(time.perf_counter() - began)
    return seconds
