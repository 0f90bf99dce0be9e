"""Is one system better than another, or could each block's errors as well have been the other's?

Whole blocks (speakers) swap the two systems. The p-value is the share of all ways to swap that give
a difference at least as large as the one found: exact, whatever the number of blocks and the shape
of their errors, where the systems are alike block by block. Both have the same references, so a
swap moves errors and leaves the units of a rate where they are. A bootstrap's p-values, which were
here before, are too small where blocks are few. Source: Noreen, Computer-intensive methods for
testing hypotheses, 1989.
"""

from __future__ import annotations

import numpy as np

_SIGNS_AT_ONCE = 4_000_000  # signs: bounds the memory to some 70 MB


def swap_p_value(differences: np.ndarray, draws: int, random: np.random.Generator) -> float:
    """Two-sided p-value that the blocks' differences (B,) are as likely of either sign.

    All 2^B ways are tried where there are at most ``draws`` (B <= 13 for 5,000; one of each pair of
    opposites is enough, and blocks without a difference do not count). Else ``draws`` random ones
    are, with the one that was found: the result is then never below 1 / (draws + 1).
    """
    differences = np.asarray(differences, dtype=np.float64)
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    # What is equal on paper may differ in its last digits.
    least = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    ways = 2 ** (len(differences) - 1)
    if ways <= draws:
        swapped = np.arange(ways)[:, None] >> np.arange(len(differences)) & 1
        return float((np.abs(_sums(differences, swapped)) >= least).mean())
    hits, step = 0, max(1, _SIGNS_AT_ONCE // len(differences))
    for start in range(0, draws, step):
        size = (min(step, draws - start), -(-len(differences) // 8))
        bits = np.unpackbits(random.integers(0, 256, size, dtype=np.uint8), axis=1)
        sums = _sums(differences, bits[:, : len(differences)])
        hits += int((np.abs(sums) >= least).sum())
    return (hits + 1) / (draws + 1)


def _sums(differences: np.ndarray, swapped: np.ndarray) -> np.ndarray:
    """(ways,) sums of the differences (B,), their sign turned where ``swapped`` (ways, B) is 1."""
    return differences.sum() - 2 * (swapped.astype(np.float64) @ differences)


def least_p_value(blocks: int) -> float:
    """No two-sided p-value of so many blocks is smaller: all of them favour one system."""
    return min(1.0, 2.0 ** (1 - blocks))
