"""Random numbers per image that depend only on its id and the seed, not on where or when it is read."""

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]


def draw_uniform(ids: npt.NDArray[np.int64], seed: int, num_draws: int) -> npt.NDArray[np.float32]:
    """Draw uniform random numbers for images by hashing their ids.

    Parallel readers see the images in no fixed order, so the state of a sequential generator would give an
    image other numbers in every run. A hash of the id (SplitMix64; Steele, Lea and Flood, 2014) does not.

    Args:
        ids: `[n]` image ids.
        seed: Seed of the run; another seed gives unrelated numbers.
        num_draws: Number of draws per image. It enters the hash: with another value all draws change.

    Returns:
        `[n, num_draws]` in [0, 1).

    Example:
        >>> bool((draw_uniform(np.array([3, 7]), 0, 2)[1] == draw_uniform(np.array([7]), 0, 2)[0]).all())
        True
    """
    draw_numbers = np.arange(num_draws, dtype=np.uint64)
    counters: Words = ids.astype(np.uint64)[:, None] * np.uint64(num_draws) + draw_numbers
    # The seed is hashed before it is mixed in: with the plain seed, seeds 0 and 1 would share most counters.
    key = _splitmix64(np.array([seed % 2**64], dtype=np.uint64))
    bits = _splitmix64(counters ^ key) >> np.uint64(40)
    # 24 bits are what a float32 holds exactly; with more, rounding could give 1.0.
    return (bits.astype(np.float64) / 2.0**24).astype(np.float32)


def _splitmix64(words: Words) -> Words:
    """Hash every 64-bit word; the constants are those of the published generator."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is intended
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
