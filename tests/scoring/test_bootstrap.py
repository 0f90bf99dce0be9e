"""The bootstrap against exact enumeration, closed forms and its own rules."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest

from distilwhisper_lib.scoring.resampling import (
    MIN_SPEAKERS,
    Blocks,
    generator,
    holm,
    interval,
    least_p_value,
    resampled_rates,
    speaker_blocks,
)


def test_blocks_are_speakers_where_they_are_known():
    blocks = speaker_blocks(list("bafbcde"))
    assert (blocks.count, blocks.kind) == (6, "speaker")
    assert blocks.of_utterance[0] == blocks.of_utterance[3] != blocks.of_utterance[1]
    assert (speaker_blocks(["", ""]).count, speaker_blocks(["", ""]).kind) == (2, "utterance")
    mixed = speaker_blocks(["a", "", "a", ""])
    assert (mixed.count, mixed.kind) == (3, "speaker, or utterance where unknown")


def test_of_fewer_speakers_than_a_test_could_tell_apart_utterances_are_drawn():
    assert least_p_value(MIN_SPEAKERS - 1) > 0.05 > least_p_value(MIN_SPEAKERS)
    for names, kind in (("aaaa", "1 speaker"), ("abcde" * 2, "5 speakers")):
        blocks = speaker_blocks(list(names))
        assert (blocks.count, blocks.kind) == (len(names), f"utterance ({kind})")
        assert len(set(blocks.of_utterance)) == len(names)


def test_a_tiny_case_equals_its_enumeration():
    """Three blocks have 27 equally likely resamples: all of them, with their probabilities."""
    errors, units = np.array([0, 2, 1, 4]), np.array([3, 4, 2, 5])
    blocks = Blocks(np.array([0, 1, 1, 2]), 3, "speaker")
    sums = np.array([[0, 3], [3, 6], [4, 5]])
    exact: dict[float, float] = {}
    for chosen in itertools.product(range(3), repeat=3):
        e, u = sums[list(chosen)].sum(0)
        exact[e / u] = exact.get(e / u, 0) + 1 / 27
    rates = resampled_rates(errors[:, None], units, blocks, 60_000, generator(0))[:, 0]
    values, counts = np.unique(rates, return_counts=True)
    assert sorted(exact) == pytest.approx(values)
    for value, count in zip(values, counts, strict=True):
        share = exact[min(exact, key=lambda v, value=value: abs(v - value))]
        assert count / 60_000 == pytest.approx(share, abs=5 * math.sqrt(share / 60_000))


def test_spread_and_interval_equal_the_delta_method():
    """The variance of a ratio of means, var(e - R u) / (B mean(u)^2), and its normal interval."""
    random = np.random.default_rng(1)
    units = random.integers(4, 15, 3_000)
    errors = random.binomial(units, 0.3)
    speakers = [str(s) for s in random.integers(0, 400, 3_000)]
    blocks = speaker_blocks(speakers)
    rates = resampled_rates(errors[:, None], units, blocks, 20_000, generator(0))[:, 0]
    e = np.bincount(blocks.of_utterance, errors)
    u = np.bincount(blocks.of_utterance, units)
    rate = e.sum() / u.sum()
    deviation = math.sqrt(((e - rate * u) ** 2).mean() / len(e)) / u.mean()
    assert rates.std() == pytest.approx(deviation, rel=0.02)
    low, high = interval(rates)
    assert low == pytest.approx(rate - 1.96 * deviation, abs=0.06 * deviation)
    assert high == pytest.approx(rate + 1.96 * deviation, abs=0.06 * deviation)


def test_blocks_widen_the_interval_when_speakers_differ():
    random = np.random.default_rng(2)
    speaker = np.repeat(np.arange(50), 20)
    errors = random.binomial(10, random.uniform(0, 0.6, 50)[speaker])
    units = np.full(1000, 10)
    by_speaker, by_utterance = (
        resampled_rates(errors[:, None], units, speaker_blocks(names), 2_000, generator(0)).std()
        for names in ([str(s) for s in speaker], [""] * 1000)
    )
    assert by_speaker > 2 * by_utterance


def test_systems_share_every_draw():
    random = np.random.default_rng(3)
    units = random.integers(1, 9, 100)
    errors = random.binomial(units, 0.4)
    rates = resampled_rates(
        np.column_stack([errors, errors + units]), units, speaker_blocks([""] * 100), 500,
        generator(0),
    )  # fmt: skip
    assert rates[:, 1] - rates[:, 0] == pytest.approx(1.0)


def test_draws_depend_on_the_seed_and_the_cell_only():
    def rates(*names):
        errors, units = np.arange(30)[:, None], np.full(30, 40)
        return resampled_rates(errors, units, speaker_blocks([""] * 30), 50, generator(*names))

    assert np.array_equal(rates(0, "in_domain", "ca"), rates(0, "in_domain", "ca"))
    assert not np.array_equal(rates(0, "in_domain", "ca"), rates(0, "in_domain", "cs"))
    assert not np.array_equal(rates(0, "in_domain", "ca"), rates(1, "in_domain", "ca"))


def test_unscored_utterances_and_their_blocks_do_not_count():
    errors, units = np.array([[1], [0], [2]]), np.array([4, 0, 4])
    rates = resampled_rates(errors, units, speaker_blocks(["a", "b", "c"]), 400, generator(0))
    assert set(np.unique(rates)) == {0.25, 0.375, 0.5}


def test_holm_is_the_step_down_rule():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    first, second = holm([math.nan, 0.02])
    assert math.isnan(first) and second == 0.02
    assert holm([]) == []


def test_ten_thousand_clips_take_seconds_and_little_memory():
    random = np.random.default_rng(5)
    units = random.integers(1, 20, 10_000)
    errors = random.binomial(units[:, None], [0.1] * 7)
    tracemalloc.start()
    begin = time.perf_counter()
    rates = resampled_rates(errors, units, speaker_blocks([""] * 10_000), 1_000, generator(0))
    taken, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rates.shape == (1_000, 7)
    assert taken < 20  # half a second on an idle core
    assert peak < 2**28
