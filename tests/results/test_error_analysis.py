"""Kinds of errors, loops, lengths, worst utterances; and what a system costs."""

from __future__ import annotations

import html
import re

import jiwer
import numpy as np
import pandas as pd
import pytest
from make_records import make_record, make_rows, make_run

from distilwhisper_lib.results import costs
from distilwhisper_lib.results.error_analysis import (
    CHARACTERS,
    LOOP_RULE,
    TIMES,
    error_by_length,
    error_kinds,
    fastest_pace,
    hallucinations,
    loops,
    normalizers_side_by_side,
    worst_utterances,
)
from distilwhisper_lib.results.hypotheses import FIELD, publish
from distilwhisper_lib.results.significance import NO_HYPOTHESES
from distilwhisper_lib.scoring.alignment import Alignment, Piece, align, aligned_html

SENTENCE = "Si us plau, subscriviu-vos al canal i activeu la campana de notificacions. "


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path, method, errors=e) for method, e in (("teacher", 0.1), ("js", 0.4))]


def test_kinds_of_errors_add_up_to_the_rate(runs):
    table = error_kinds(runs, "wer")
    assert len(table) == 4 and list(table["system"][:2]) == ["Teacher", "+ CLSR + JS"]
    total = table[["substitutions", "deletions", "insertions"]].sum(axis=1)
    assert total.tolist() == pytest.approx(table["error"].tolist())
    assert (table["insertions"] == 0).all() and (table["deletions"] > 0).all()


def test_normalisers_stand_side_by_side():
    (first, _) = normalizers_side_by_side([make_record(wer=0.3)]).to_dict("records")
    assert first["WER marks"] == pytest.approx(30) and first["WER whisper"] == pytest.approx(25)
    assert first["CER marks"] == pytest.approx(15)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no no no", True),
        ("el gat el gat el gat el gat", True),
        ("el gat el gat el gat", False),  # three times may be meant
        ("jajajajajaja", True),
        ("aaaaaaaaaaaaaa", True),
        ("ปลาปลาปลาปลา", True),
        ("una frase com cal que no repeteix res", False),
        ("", False),
        ("x" * 11, False),
        ("1000000000000", False),
        ("el 2000000000000000 i el 1,000,000,000,000", False),
        ("1a 1a 1a 1a", True),
        ("." * 40, False),
        (SENTENCE * 5, True),  # as Whisper does in silence
        (SENTENCE * 3, False),
        (f"{SENTENCE * 2}i {SENTENCE * 2}", False),
        (f"D'acord, {SENTENCE * 4}fins demà.", True),
        ("ab" * 5, False),
        ("ab" * 6, True),
        ("abc" * 4, True),
        ("\ud800" * 20, False),  # half of a surrogate pair, as broken JSON may have it
    ],
)
def test_loops(text, expected):
    assert loops(text) is expected


def test_the_detector_is_its_description():
    """Against the rule read word by word: every stretch, every unit."""

    def by_hand(text):
        text = f"{text} "
        for start in range(len(text)):
            for length in range(1, (len(text) - start) // 4 + 1):
                unit, times = text[start : start + length], 0
                while text.startswith(unit, start + times * length):
                    times += 1
                if times >= 4 and times * length >= 12 and any(c.isalpha() for c in unit):
                    return True
        return False

    random, found = np.random.default_rng(0), []
    for _ in range(400):
        unit = "".join(random.choice(list("ab1 "), random.integers(1, 5)))
        tail = "".join(random.choice(list("ab1 "), random.integers(0, 6)))
        text = tail[::-1] + unit * random.integers(1, 9) + tail
        found.append(loops(text))
        assert found[-1] is by_hand(text), text
    assert 50 < sum(found) < 350


def test_the_page_tells_the_rule():
    assert (TIMES, CHARACTERS) == (4, 12)
    assert "4 times or more in a row and 12 characters or more in all" in LOOP_RULE


def test_outputs_that_are_no_transcript_are_counted(tmp_path):
    record = make_record()
    rows = make_rows(clips=100, errors=0)
    rows[0]["hypothesis"] = "el gat menja " * 40
    rows[1]["hypothesis"] = rows[1]["reference"] = "el gat " * 4  # said so, and heard so
    rows[1]["seconds"] = 5.0
    rows[2]["hypothesis"] = " "
    rows[3]["capped"] = True
    record["evaluations"] = record["evaluations"][:1]
    record["evaluations"][0][FIELD] = publish(rows, tmp_path, record["run_id"], "in_domain")
    (found,) = hallucinations([record], tmp_path).to_dict("records")
    assert {n: found[n] for n in ("loops", "too long", "cut", "empty")} == {
        "loops": 1.0, "too long": 1.0, "cut": 1.0, "empty": 1.0,
    }  # fmt: skip
    paces = [len(row["reference"]) / row["seconds"] for row in rows]
    assert found["bound (characters/s)"] == pytest.approx(1.5 * np.quantile(paces, 0.99))
    assert fastest_pace(rows) == found["bound (characters/s)"]
    (strict,) = hallucinations([record], tmp_path, bound=1.0).to_dict("records")
    assert strict["too long"] == 99.0  # all but the empty one
    (none,) = hallucinations([make_record("lora")], tmp_path)["note"].unique()
    assert none == NO_HYPOTHESES


def test_lengths_have_bins_of_equal_size_that_pool_to_the_rate(runs, tmp_path):
    table = error_by_length(runs, tmp_path, "wer", bins=3)
    one = table[(table["system"] == "+ CLSR + JS") & (table["domain"] == "in_domain")]
    assert one["clips"].sum() == 120 and one["clips"].min() > 15
    assert (one["from"].iloc[1:].to_numpy() == one["to"].iloc[:-1].to_numpy()).all()
    words = [len(row["reference"].split()) for row in make_rows(errors=0.4)]
    assert one["to"].iloc[-1] == pytest.approx(0.4 * max(words))
    rate = runs[1]["evaluations"][0]["scores"]["marks"]["wer"]["wer"]
    assert one["error"].min() < 100 * rate < one["error"].max()
    assert error_by_length([make_record()], tmp_path).empty


def test_clips_of_one_length_are_one_bin(tmp_path):
    record, rows = make_record(), [r | {"seconds": 2.0} for r in make_rows(clips=9)]
    record["evaluations"] = record["evaluations"][:1]
    record["evaluations"][0][FIELD] = publish(rows, tmp_path, record["run_id"], "in_domain")
    (row,) = error_by_length([record], tmp_path).to_dict("records")
    assert (row["from"], row["to"], row["clips"]) == (2.0, 2.0, 9)


def test_worst_utterances_come_first(runs, tmp_path):
    worst = worst_utterances(runs, tmp_path, "ca", count=5)
    assert len(worst) == 5 and worst["errors"].is_monotonic_decreasing
    first = worst.iloc[0]
    measures = jiwer.process_words(first["reference"], first["hypothesis"])
    assert first["errors"] == (measures.substitutions + measures.deletions + measures.insertions)
    assert first["error (%)"] == pytest.approx(100 * measures.wer)
    assert worst_utterances(runs, tmp_path, "cs").attrs["note"] == "not run"
    nothing = worst_utterances([make_record()], tmp_path, "ca")
    assert nothing.attrs["note"] == NO_HYPOTHESES
    assert NO_HYPOTHESES in Alignment(nothing)._repr_html_()


# --------------------------------------------------------------------------------- alignment


def test_pieces_are_the_alignment():
    assert align("a b c d", "a x c d e") == [
        Piece("=", "a", "a"), Piece("S", "b", "x"), Piece("=", "c", "c"), Piece("=", "d", "d"),
        Piece("I", "", "e"),
    ]  # fmt: skip
    assert align("a b", "a") == [Piece("=", "a", "a"), Piece("D", "b", "")]
    assert align("", "a b") == [Piece("I", "", "a b")]
    assert align("", "") == []
    assert align("ปลา", "ปลี", "cer") == [Piece("=", "ปล", "ปล"), Piece("S", "า", "ี")]


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_pieces_hold_every_word_and_count_the_errors(metric):
    for row in make_rows(errors=0.5):
        pieces = align(row["reference"], row["hypothesis"], metric)
        gap = " " if metric == "wer" else ""
        assert gap.join(p.reference for p in pieces if p.reference) == row["reference"]
        assert gap.join(p.hypothesis for p in pieces if p.hypothesis) == row["hypothesis"]


def test_text_is_escaped_and_errors_are_not_told_by_colour_alone():
    shown = aligned_html('<script>alert("x")</script> b', "<img onerror=1> b & c")
    assert "<script" not in shown and "<img" not in shown
    assert html.escape('<script>alert("x")</script>') in shown and "&amp;" in shown
    assert "line-through" in shown and "underline" in shown
    table = pd.DataFrame(
        [{"id": "<b>", "seconds": 1.0, "errors": 1, "error (%)": 50.0,
          "reference": "<i>", "hypothesis": "<u>"}]
    )  # fmt: skip
    table.attrs = {"system": "<s>", "language": "ca", "domain": "in_domain", "metric": "wer"}
    page = Alignment(table)._repr_html_()
    assert not re.search(r"<(b|i|u|s)>", page)


# -------------------------------------------------------------------------------------- costs


def test_costs_are_means_over_runs_and_the_largest_peak():
    runs = [make_record("js", "ca"), make_record("js", "cs"), make_record("zero_shot", "ca")]
    runs[1]["training"] |= {"seconds": 90.0, "peak_memory_bytes": 2**31}
    runs[2]["training"] = None
    table = costs.cost_table(runs)
    js = table.loc[("demo, all 800 training clips", "+ CLSR + JS")]
    assert js["runs"] == 2 and js["training minutes"] == 1.0 and js["peak GiB"] == 2.0
    assert js["trained values"] == 1234 and js["MiB per language"] == 5000 / 2**20
    assert js["real-time factor, in domain"] == 0.05 and js["device"] == "A CPU, 2 cores"
    text = costs.formatted_costs(table)
    assert list(text.index.get_level_values("system")) == ["Student zero-shot", "+ CLSR + JS"]
    assert text.iloc[0]["trained values"] == "none" and text.iloc[1]["trained values"] == "1,234"
    assert costs.formatted_costs(costs.cost_table([])).empty


def test_overview_says_whether_hypotheses_are_published(tmp_path):
    runs = [make_run(tmp_path, "js"), make_record("teacher")]
    table = costs.overview(runs)
    assert list(table["method"]) == ["teacher", "js"]
    assert list(table["hypotheses"]) == ["not published", "published"]
    assert costs.overview([]).empty
