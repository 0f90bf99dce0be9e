"""Bootstrap of error rates: what a test set of other speakers might have given.

Whole speakers are drawn, because the errors of one speaker go together; drawing utterances would
make intervals too narrow. Of a handful of speakers nothing can be said but of themselves: then
utterances are drawn. An error rate is a ratio of sums, so a resample needs the sums of its
blocks only: (B blocks, K systems) numbers, whatever the number of words. Intervals are percentile;
for p-values see `permutation`. Source: Bisani and Ney, Bootstrap estimates for confidence intervals
in ASR performance evaluation, ICASSP 2004.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 5_000
MIN_SPEAKERS = 6  # of 5, no test can find p < 0.05, whatever they say: see permutation
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
