"""Intervals and paired differences from published hypotheses."""

from __future__ import annotations

import numpy as np
import pytest
from make_records import make_pairs, make_record, make_rows, make_run

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.forced import count_case, count_clips
from distilwhisper_lib.results import tables
from distilwhisper_lib.results.significance import NO_HYPOTHESES, OTHER_CLIPS, forced_row, resample
from distilwhisper_lib.scoring.resampling import generator, swap_p_value

PAIR = [("js", "zero_shot")]


@pytest.fixture
def study(tmp_path):
    return make_pairs(tmp_path)


def only(frame, **wanted):
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (row,) = frame.to_dict("records")
    return row


def test_estimates_are_the_tables_cells_and_lie_in_their_intervals(study, tmp_path):
    table = tables.wide(tables.results_table(study), "error")
    intervals = resample(study, tmp_path, resamples=500).intervals()
    assert len(intervals) == 2 * 2 * 3
    for row in intervals.to_dict("records"):
        cell = table.loc[row["system"], (row["domain"], row["language"])]
        assert row["error"] == pytest.approx(cell)
        assert row["low"] < row["error"] < row["high"]
        assert row["blocked on"] == "speaker"
    assert only(intervals, system="+ CLSR + JS", domain="in_domain", language="ca")["blocks"] == 24
    average = only(intervals, system="+ CLSR + JS", domain="in_domain", language="average")
    one = only(intervals, system="+ CLSR + JS", domain="in_domain", language="ca")
    assert average["high"] - average["low"] < one["high"] - one["low"]  # two languages know more


def test_differences_are_paired(study, tmp_path):
    resampled = resample(study, tmp_path, resamples=2_000)
    test = only(resampled.differences(PAIR), domain="in_domain", language="ca")
    cells = resampled.found["demo, all 800 training clips"]
    js = cells["+ CLSR + JS", "in_domain", "ca"]
    student = cells["Student zero-shot", "in_domain", "ca"]
    assert test["difference"] == pytest.approx(100 * (js.rate - student.rate))
    assert test["difference"] < 0 and test["high"] < 0 and test["p"] < 0.01
    assert [test["low"], test["high"]] == pytest.approx(
        100 * np.quantile(js.rates - student.rates, [0.025, 0.975])
    )
    assert set(resampled.differences(PAIR)["language"]) == {"ca", "cs", "average"}
    by_block = js.parts - student.parts
    assert by_block.shape == (24,) and by_block.sum() == pytest.approx(js.rate - student.rate)
    p = swap_p_value(by_block, 2_000, generator(0, "swap", "in_domain", "ca"))
    assert test["p"] == p
    both = cells["+ CLSR + JS", "in_domain", "average"]
    assert both.parts.shape == (48,) and both.parts.sum() == pytest.approx(both.rate)


def test_a_system_does_not_differ_from_its_twin(tmp_path):
    twins = [make_run(tmp_path, method, errors=0.3, noise=5) for method in ("kl", "js")]
    test = only(resample(twins, tmp_path).differences([("js", "kl")]), domain="in_domain",
                language="ca")  # fmt: skip
    assert test["difference"] == test["low"] == test["high"] == 0 and test["p"] == 1


def test_holm_adjusts_over_the_pairs_of_one_test_set(study, tmp_path):
    twice = [("js", "zero_shot"), ("zero_shot", "js")]
    frame = resample(study, tmp_path, resamples=200).differences(twice)
    cell = frame[(frame["domain"] == "in_domain") & (frame["language"] == "ca")]
    assert list(cell["p (Holm)"]) == pytest.approx(list(2 * cell["p"]))


def test_the_same_seed_gives_the_same_numbers_whatever_else_there_is(study, tmp_path):
    def row(records, **options):
        frame = resample(records, tmp_path, resamples=200, **options).intervals()
        return only(frame, system="+ CLSR + JS", domain="in_domain", language="ca")

    assert row(study) == row(study[::-1]) == row(study[1:2])
    assert row(study)["low"] != row(study, seed=1)["low"]


def test_seeds_count_as_the_mean_of_their_errors(tmp_path):
    runs = [make_run(tmp_path, "js", seed=s, errors=e) for s, e in ((1, 0.2), (2, 0.4))]
    row = only(resample(runs, tmp_path, resamples=200).intervals(), domain="in_domain",
               language="ca")  # fmt: skip
    assert row["error"] == pytest.approx(
        tables.wide(tables.results_table(runs), "error").loc["+ CLSR + JS", ("in_domain", "ca")]
    )
    assert row["low"] < row["error"] < row["high"]


def soft_file(record, errors, clips=None):
    """What a run said with soft gates, as forced_gates keeps it, of its test set in domain."""
    said, asked = (make_rows(noise=0, errors=e)[:clips] for e in (errors, 0.0))
    cases = {"soft": count_case(said, "ca")}
    return {
        "run_id": record["run_id"],
        "weights_sha256": record["training"]["weights_sha256"],
        "domains": {"in_domain": count_clips(asked, "ca") | {"cases": cases}},
    }


def test_soft_gates_stand_as_a_row_of_their_own_where_every_run_was_heard_so(tmp_path):
    runs = [make_run(tmp_path, "js", seed=s, errors=e) for s, e in ((1, 0.4), (2, 0.5))]
    rival = make_run(tmp_path, "lora", errors=0.3)
    files = [soft_file(run, errors) for run, errors in zip(runs, (0.1, 0.2), strict=True)]
    row = forced_row("+ CLSR + JS")

    def found(forced):
        return resample([*runs, rival], tmp_path, forced=forced, resamples=200)

    softly = found(files)
    place = {"domain": "in_domain", "language": "ca"}
    rates = [
        100 * f["domains"]["in_domain"]["cases"]["soft"]["scores"]["marks"]["wer"] for f in files
    ]
    cell = only(softly.intervals(), system=row, **place)
    assert cell["error"] == pytest.approx(sum(rates) / 2)
    assert cell["low"] < cell["error"] < cell["high"]
    assert only(softly.differences([(row, "lora")]), **place)["high"] < 0
    plain = softly.intervals()
    plain = plain[plain["system"] != row].reset_index(drop=True)
    assert plain.equals(found([]).intervals())  # what stands beside it is as without it
    assert set(softly.intervals().query("system == @row")["domain"]) == {"in_domain"}

    other = files[1] | {"weights_sha256": "5" * 64}
    few = soft_file(runs[1], 0.2, clips=7)
    for forced in ([files[0]], [files[0], other], [files[0], few], []):
        assert row not in set(found(forced).intervals()["system"])
    assert forced_row("+ CLSR (budget=0.3)") == "+ CLSR (soft gates, budget=0.3)"


def test_random_gates_count_as_the_mean_of_their_draws(tmp_path):
    run = make_run(tmp_path, "js", errors=0.3)
    file = soft_file(run, 0.2)
    wrong = {"open": 0.4, "random.1": 0.45, "random.2": 0.5, "random.3": 0.55}
    cases = {n: count_case(make_rows(noise=0, errors=e), "ca") for n, e in wrong.items()}
    file["domains"]["in_domain"]["cases"] |= cases
    found = resample([run], tmp_path, forced=[file], resamples=200)
    names = [forced_row("+ CLSR + JS", way) for way in ("soft", "open", "random")]
    assert names[1:] == ["+ CLSR + JS (always open)", "+ CLSR + JS (random gates)"]
    assert set(found.intervals()["system"]) == {"+ CLSR + JS", *names}
    place = {"domain": "in_domain", "language": "ca"}
    rates = [cases[f"random.{n}"]["scores"]["marks"]["wer"] for n in (1, 2, 3)]
    cell = only(found.intervals(), system=names[2], **place)
    assert cell["error"] == pytest.approx(100 * np.mean(rates))
    pair = only(found.differences([("js", names[2])]), **place)
    learned = only(found.intervals(), system="+ CLSR + JS", **place)
    assert pair["difference"] == pytest.approx(learned["error"] - cell["error"])
    assert pair["high"] < 0 and pair["p"] < 0.01


def test_the_average_of_unequal_seeds_is_the_tables(tmp_path):
    runs = [
        make_run(tmp_path, "js", language, seed, errors=errors)
        for language, seed, errors in (("ca", 1, 0.1), ("ca", 2, 0.5), ("cs", 1, 0.2))
    ]
    cells = tables.wide(tables.results_table(runs), "error").loc["+ CLSR + JS", "in_domain"]
    assert cells["average"] == pytest.approx((cells["ca"] + cells["cs"]) / 2)
    row = only(resample(runs, tmp_path, resamples=200).intervals(), domain="in_domain",
               language="average")  # fmt: skip
    assert row["error"] == pytest.approx(cells["average"])
    assert row["low"] < cells["average"] < row["high"]


def test_unknown_speakers_are_said(tmp_path):
    runs = [make_run(tmp_path, "js", speakers=0)]
    row = only(resample(runs, tmp_path, resamples=100).intervals(), domain="in_domain",
               language="ca")  # fmt: skip
    assert (row["blocked on"], row["blocks"]) == ("utterance", row["clips"])


def test_few_speakers_are_said(tmp_path):
    runs = [make_run(tmp_path, "js", speakers=8)]
    runs.append(make_run(tmp_path, "zero_shot", speakers=8, errors=0.6))
    resampled = resample(runs, tmp_path, resamples=200)
    assert set(resampled.intervals()["note"]) == {"8 blocks only: too narrow"}
    tests = resampled.differences(PAIR)
    assert set(tests["note"]) == {"8 blocks only: interval too narrow, p at least 0.0078"}
    assert tests["p"].min() == pytest.approx(2 / 2**8)  # every speaker is better off with experts


def test_runs_without_hypotheses_say_so(study, tmp_path):
    plain = [make_record("lora", "ca"), make_record("lora", "cs")]
    resampled = resample([*study, *plain], tmp_path, resamples=100)
    lora = resampled.intervals().query("system == '+ LoRA'")
    assert len(lora) == 6 and set(lora["note"]) == {NO_HYPOTHESES} and lora["error"].isna().all()
    tests = resampled.differences([("js", "lora")])
    assert set(tests["note"]) == {NO_HYPOTHESES} and tests["p"].isna().all()


def test_other_clips_are_not_compared(study, tmp_path):
    other = make_run(tmp_path, "lora", "ca", clips=40)
    tests = resample([*study, other], tmp_path, resamples=100).differences([("js", "lora")])
    assert set(tests["note"]) == {OTHER_CLIPS}


def test_bad_arguments_and_no_records(tmp_path):
    with pytest.raises(UserError, match="unknown metric 'mer'"):
        resample([], tmp_path, "mer")
    with pytest.raises(UserError, match="unknown normalizer 'nfkd'"):
        resample([], tmp_path, normalizer="nfkd")
    with pytest.raises(UserError, match="resamples=9 is too few"):
        resample([], tmp_path, resamples=9)
    empty = resample([], tmp_path)
    assert len(empty.intervals()) == len(empty.differences()) == 0
    assert "note" in empty.intervals() and "p (Holm)" in empty.differences()


def test_the_headline_is_each_languages_own_metric(tmp_path):
    runs = [make_run(tmp_path, "js", language) for language in ("ca", "th")]
    intervals = resample(runs, tmp_path, "headline", resamples=100).intervals()
    for language, metric in (("ca", "wer"), ("th", "cer")):
        scores = runs[language == "th"]["evaluations"][0]["scores"]["marks"]
        row = only(intervals, domain="in_domain", language=language)
        assert row["error"] == pytest.approx(100 * scores[metric][metric])
    average = only(intervals, domain="in_domain", language="average")
    catalan = only(intervals, domain="in_domain", language="ca")
    assert average["error"] == catalan["error"]  # rates are never mixed
