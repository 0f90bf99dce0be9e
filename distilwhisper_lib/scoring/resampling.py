"""What a test set of other speakers might have given: bootstrap intervals and p-values by swaps.

Whole speakers are drawn, because the errors of one speaker go together; drawing utterances would
make intervals too narrow. Of a handful of speakers nothing can be said but of themselves: then
utterances are drawn. An error rate is a ratio of sums, so a resample needs the sums of its
blocks only: (B blocks, K systems) numbers, whatever the number of words. Intervals are percentile;
a bootstrap's p-values are too small where blocks are few, so those are made otherwise: whole blocks
swap the two systems, and p is the share of all ways to swap that give a difference at least as
large as the one found: exact, whatever the number of blocks and the shape of their errors, where
the systems are alike block by block. Both have the same references, so a swap moves errors and
leaves the units of a rate where they are. Sources: Bisani and Ney, Bootstrap estimates for
confidence intervals in ASR performance evaluation, ICASSP 2004; Noreen, Computer-intensive methods
for testing hypotheses, 1989.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 5_000
MIN_SPEAKERS = 6  # of 5, no test can find p < 0.05, whatever they say: see swap_p_value
FEW_BLOCKS = 20  # below, percentile intervals are known to be too narrow
_DRAWN_AT_ONCE = 4_000_000  # bounds the memory: some 100 MB whatever the test set


@dataclass(frozen=True)
class Blocks:
    """Which block each utterance belongs to: (N,) from 0 to count - 1, and what a block is."""

    of_utterance: np.ndarray
    count: int
    # "speaker", "utterance", both where only some speakers are known, or "utterance (2 speakers)"
    kind: str


def speaker_blocks(speakers: Sequence[str]) -> Blocks:
    """One block a speaker; an utterance of an unknown speaker ("") is a block of its own, and so is
    every utterance where there are fewer than `MIN_SPEAKERS` speakers: the result is then about
    other utterances of these speakers, and not about other speakers."""
    names = [speaker or f"\0{place}" for place, speaker in enumerate(speakers)]
    unknown = sum(not speaker for speaker in speakers)
    kind = "speaker"
    if unknown:
        kind = "utterance" if unknown == len(speakers) else "speaker, or utterance where unknown"
    found, of_utterance = np.unique(np.array(names, dtype=object), return_inverse=True)
    if not unknown and len(found) < MIN_SPEAKERS:
        who = "1 speaker" if len(found) == 1 else f"{len(found)} speakers"
        return Blocks(np.arange(len(names)), len(names), f"utterance ({who})")
    return Blocks(of_utterance.ravel(), len(found), kind)


def generator(seed: int, *names: str) -> np.random.Generator:
    """Random numbers for one cell of a table: the same whatever other cells there are."""
    return np.random.default_rng([seed, zlib.crc32("/".join(names).encode())])


def resampled_rates(
    errors: np.ndarray,
    units: np.ndarray,
    blocks: Blocks,
    resamples: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Error rates of resampled test sets, (resamples, K) as fractions.

    ``errors`` (N, K) of K systems on the same utterances, ``units`` (N,) of the references. All
    systems share each draw, which is what makes their differences paired.
    """
    columns = np.column_stack([errors, units]).astype(np.float64)
    sums = np.zeros((blocks.count, columns.shape[1]))
    np.add.at(sums, blocks.of_utterance, columns)
    sums = sums[sums[:, -1] > 0]  # a block without a scored utterance says nothing
    count = len(sums)
    rates = np.empty((resamples, errors.shape[1]))
    step = max(1, _DRAWN_AT_ONCE // count)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        chosen = random.integers(0, count, (draws, count), dtype=np.int32)
        chosen += np.arange(draws, dtype=np.int32)[:, None] * count
        times = np.bincount(chosen.ravel(), minlength=draws * count).reshape(draws, count)
        drawn = times.astype(np.float64) @ sums  # whole numbers, so exact in any order of sums
        rates[start : start + draws] = drawn[:, :-1] / drawn[:, -1:]
    return rates


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """The central share ``level`` of resampled values."""
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def holm(values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are, after Holm (1979); NaN stays NaN."""
    known = [place for place, value in enumerate(values) if not np.isnan(value)]
    adjusted, highest = list(map(float, values)), 0.0
    for rank, place in enumerate(sorted(known, key=lambda place: values[place])):
        highest = max(highest, min(1.0, (len(known) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted


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
