"""The paired test against enumeration, scipy and its promise: 5 % of equal systems below 0.05."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from distilwhisper_lib.scoring.resampling import generator, least_p_value, swap_p_value


def p_of(differences, draws=5_000, seed=0):
    return swap_p_value(np.asarray(differences), draws, generator(seed))


def by_hand(differences):
    found = abs(sum(differences)) - 1e-9
    ways = list(itertools.product((1, -1), repeat=len(differences)))
    sums = [sum(s * d for s, d in zip(way, differences, strict=True)) for way in ways]
    return sum(abs(total) >= found for total in sums) / len(ways)


@pytest.mark.parametrize(
    "differences", [[1.0], [3, -1, 2], [5, 5, -5, 1], [0.1, 0.2, 0.3, -0.6], [4, 0, 0, 2, 3, -1, 7]]
)
def test_few_blocks_are_enumerated(differences):
    assert p_of(differences) == by_hand(differences)


def test_all_blocks_of_one_mind_give_the_least_p_value():
    for blocks in (2, 8, 13):
        assert p_of(np.arange(1, blocks + 1)) == least_p_value(blocks) == 2 / 2**blocks
    assert least_p_value(0) == 1
    assert p_of(np.zeros(9)) == p_of([]) == 1
    assert p_of([2, 3, 0, 0]) == p_of([2, 3])  # blocks without a difference tell nothing


def test_many_blocks_are_drawn_and_agree_with_the_enumeration():
    differences = np.random.default_rng(1).permutation([-6, -5, -4, -2, *range(1, 12)])  # 2^14 ways
    exact = p_of(differences, draws=2**14)
    assert exact == pytest.approx(by_hand(differences.tolist()))
    drawn = p_of(differences, draws=9_999)
    assert drawn != exact and drawn == pytest.approx(exact, abs=4 * (exact / 9_999) ** 0.5)
    assert p_of(differences, draws=500) == p_of(differences, draws=500)
    assert p_of(differences, draws=500) == p_of(-differences, draws=500)
    assert p_of(np.ones(400), draws=999) == 1 / 1000  # never 0


def test_scipy_gives_the_same():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(2)
    for blocks in (6, 11, 60):
        pair = random.integers(0, 9, (2, blocks)).astype(float)
        theirs = stats.permutation_test(
            tuple(pair), lambda a, b: (a - b).sum(), permutation_type="samples", n_resamples=4_999
        ).pvalue
        ours = p_of(pair[0] - pair[1])
        assert ours == pytest.approx(theirs, abs=0 if blocks < 12 else 0.03)


def equal_systems(random, blocks):
    """Errors of two systems that are equally good on speakers who are not: (blocks,) differences.

    Speakers read from a few words to many, and the systems' errors share the speaker's difficulty.
    """
    words = random.integers(10, 200, blocks)
    difficulty = random.beta(1.2, 6, blocks)
    first, second = (random.binomial(words, random.beta(8, 8, blocks) * difficulty) for _ in "ab")
    return first - second


@pytest.mark.parametrize("blocks", [6, 8, 12, 20, 50])
def test_equal_systems_differ_by_chance_as_often_as_promised(blocks):
    """The bootstrap that was here before gave p <= 0.05 to 13 % of them with 8 blocks."""
    random, trials = np.random.default_rng(blocks), 600
    found = [swap_p_value(equal_systems(random, blocks), 999, random) for _ in range(trials)]
    for level in (0.05, 0.2):
        share, error = np.mean(np.array(found) <= level), (level * (1 - level) / trials) ** 0.5
        assert share < level + 3 * error
        if blocks >= 12:  # fewer can only give a handful of values
            assert share > level - 3 * error


def test_better_systems_are_found():
    random = np.random.default_rng(3)
    found = [swap_p_value(random.normal(1, 1, 20), 999, random) for _ in range(200)]
    assert np.mean(np.array(found) < 0.05) > 0.9


def test_a_thousand_speakers_take_no_time():
    begin = time.perf_counter()
    p_of(np.random.default_rng(4).normal(size=3_000))
    assert time.perf_counter() - begin < 5  # a tenth of a second on an idle core
