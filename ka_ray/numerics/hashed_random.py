"""Random numbers of an image that follow from its id alone, wherever and in whatever order it is read."""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def draw_uniform(ids: npt.NDArray[np.int64], seed: int, num_draws: int) -> npt.NDArray[np.float32]:
    """Draw uniform numbers for images.

    A stream of images has no order that any number of readers would agree on, so a generator's state cannot
    be what a draw depends on: the id is hashed (SplitMix64; Steele, Lea and Flood, 2014).

    Args:
        ids: `[n]`.
        seed: Of all draws.
        num_draws: Of each image.

    Returns:
        `[n, num_draws]` in [0, 1).

    Example:
        >>> bool((draw_uniform(np.array([3, 7]), 0, 2)[1] == draw_uniform(np.array([7]), 0, 2)[0]).all())
        True
    """
    places = np.arange(num_draws, dtype=np.uint64)
    counters: Words = ids.astype(np.uint64)[:, None] * np.uint64(num_draws) + places
    key = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    bits = _mixed(counters ^ key) >> np.uint64(40)
    return (bits.astype(np.float64) / 2.0**24).astype(np.float32)


def _mixed(words: Words) -> Words:
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
