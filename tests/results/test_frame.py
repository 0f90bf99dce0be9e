"""The long table of all evaluations, which every other table is made from."""

from __future__ import annotations

import pytest
from make_records import evaluation, make_record

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.frame import evaluations, rated


def test_a_row_for_every_evaluation_normaliser_and_rate():
    record = make_record("js", "ca", wer=0.25)
    record["evaluations"].append(evaluation("in_domain", "en", 0.5))  # not what it was run for
    table = evaluations([record])
    assert len(table) == 2 * 2 * 2
    first = table.iloc[0].drop(["record", "evaluation"]).to_dict()
    assert first == {
        "training": "demo, all 800 training clips", "system": "+ CLSR + JS", "seed": 77,
        "domain": "in_domain", "language": "ca", "corpus": "folder/speech", "rtf": 0.05,
        "normalizer": "marks", "metric": "wer", "error": 25.0,
        "substitutions": 3, "deletions": 1, "insertions": 0, "hits": 40,
    }  # fmt: skip
    assert table.iloc[0]["record"] is record
    assert table.iloc[0]["evaluation"] is record["evaluations"][0]


def test_rows_stand_as_tables_have_them():
    """By training size, then test set by test set all systems in the paper's order."""
    small = [make_record(method, "cs", train_size=100) for method in ("js", "lora")]
    records = [make_record("js", train_size=3000), *small, make_record("teacher", "cs")]
    shown = rated(records)[["training", "domain", "language", "system"]]
    assert shown.to_numpy().tolist() == [
        [f"demo, {size} training clips", domain, language, system]
        for size, language, systems in (
            ("100", "cs", ("Teacher", "+ LoRA", "+ CLSR + JS")),
            ("3,000", "ca", ("+ CLSR + JS",)),
        )
        for domain in ("in_domain", "out_of_domain")
        for system in systems
    ]


def test_the_headline_is_a_cer_where_words_are_not_spaced():
    records = [make_record("js", "ca"), make_record("js", "th")]
    told = rated(records).groupby("language")["metric"].unique()
    assert {language: list(rates) for language, rates in told.items()} == {
        "ca": ["wer"],
        "th": ["cer"],
    }
    assert set(rated(records, "wer", "whisper")["metric"]) == {"wer"}
    with pytest.raises(UserError, match="unknown metric 'mer'"):
        rated(records, "mer")
