"""The line that holds one's own runs against the published ones."""

from __future__ import annotations

import copy

from make_records import make_record

from distilwhisper_lib.results.repeats import compare_repeats

PUBLISHED = [make_record("js", wer=0.25, ood=0.5), make_record("clsr", wer=0.3, ood=0.6)]


def again(record, wer, ood=0.5, **hardware):
    repeated = copy.deepcopy(record)
    for evaluation, rate in zip(repeated["evaluations"], (wer, ood), strict=True):
        evaluation["scores"]["marks"]["wer"]["wer"] = rate
    repeated["provenance"]["hardware"] |= hardware
    return repeated


def test_equal_runs_of_the_same_machine_need_no_more_words():
    assert compare_repeats(PUBLISHED, PUBLISHED) == (
        "4 of 4 error rates within 0.5 points of the published ones; largest difference 0.0."
    )


def test_another_processor_and_number_of_threads_are_named():
    js = again(PUBLISHED[0], 0.251, cpu="Another CPU")
    assert compare_repeats([js, PUBLISHED[1]], PUBLISHED) == (
        "4 of 4 error rates within 0.5 points of the published ones; largest difference 0.1, "
        "processor differs."
    )
    js["training"]["threads"] = 8
    assert "0.1, processor and number of threads differ." in compare_repeats([js], PUBLISHED)


def test_rates_that_are_farther_and_runs_that_are_missing_are_told():
    js = again(PUBLISHED[0], 0.256, ood=0.505)  # half a point is within
    assert compare_repeats([js, make_record("lora")], PUBLISHED) == (
        "1 of 2 error rates within 0.5 points of the published ones; largest difference 0.6 "
        f"({js['run_id']}, in domain), 1 farther than 0.5. 2 published ones were not run."
    )


def test_nothing_to_compare_is_said():
    for own in ([], [make_record("lora")]):
        assert compare_repeats(own, PUBLISHED) == (
            "None of your own runs is a published one: nothing to compare."
        )
