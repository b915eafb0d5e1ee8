"""Compute the links of the taps' chains of auto-encoders instead of training them."""

import time
from collections.abc import Mapping
from typing import cast

from torch import nn

from ka_ray.amalgamation import Amalgamation
from ka_ray.amalgamation.closed_form import fit_channel_autoencoder, fit_pca_autoencoder
from ka_ray.numerics.channel_selection import LayerInputStats, choose_channels
from ka_ray.numerics.moments import Moments


def solve_link(
    amalgamation: Amalgamation, link: int, moments: Moments, seen: LayerInputStats | None = None
) -> None:
    """Compute one link of a chain, those before it being known.

    Args:
        amalgamation: Changed in place.
        link: Its number.
        moments: Of the tap's stacked features.
        seen: What the next layer sees of them: the code becomes a choice of the channels. None: the principal
            subspace.
    """
    joined = amalgamation.link_moments(moments, link)
    if seen is None:
        code = fit_pca_autoencoder(joined, amalgamation.code_channels)
    else:
        chosen = choose_channels(
            seen.select_channels(amalgamation.channels(link)), amalgamation.code_channels
        )
        code = fit_channel_autoencoder(joined, chosen)
    amalgamation.links[link].load_state_dict(code.state_dict())


def solve_links(
    amalgamations: nn.ModuleDict,
    links: range,
    moments: Mapping[str, Moments],
    seen: Mapping[str, LayerInputStats],
) -> list[float]:
    """Compute links of every tap's chain; give the seconds that each took.

    Args:
        amalgamations: Changed in place.
        links: Their numbers; those before are known.
        moments: tap -> moments of its stacked features.
        seen: tap -> what the next layer sees of them; empty for principal codes.
    """
    seconds = []
    for link in links:
        began = time.perf_counter()
        for tap, part in moments.items():
            solve_link(cast(Amalgamation, amalgamations[tap]), link, part, seen.get(tap))
        seconds.append(time.perf_counter() - began)
    return seconds
