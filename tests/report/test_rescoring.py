"""Recorded scores are made again from published hypotheses, forgetting's too."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from make_records import make_record, make_rows, make_run

from distilwhisper_lib.report.rescoring import rescore
from distilwhisper_lib.results.hypotheses import FIELD, publish
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.scoring.rates import score


@pytest.fixture
def study(tmp_path):
    """A run that was heard in its own language, in another, and translating."""
    record = make_run(tmp_path, "js", "ca")
    record["forgetting"] = []
    for task, language in (("transcribe", "cs"), ("translate", "ca")):
        part, rows = f"{task}-{language}", make_rows(language, clips=20)
        record["forgetting"].append({
            "task": task, "language": language, "domain": "out_of_domain", "corpus": "folder/x",
            "clips": 20, "part": part, FIELD: publish(rows, tmp_path, record["run_id"], part),
            "scores": score(rows, language) if task == "transcribe" else None,
        })  # fmt: skip
    return record


def test_what_is_published_scores_again(study, tmp_path):
    done = rescore([study, make_record()], tmp_path)
    assert done.findings == []
    assert (done.evaluations, done.unpublished, done.forgetting, done.translations) == (2, 2, 1, 1)
    assert str(done).startswith(
        "2 of 4 evaluations and 1 transcriptions of untrained languages scored again from "
    )
    assert "No values came out otherwise. 1 translations have no score to check." in str(done)


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        (("evaluations", 1, "scores", "marks", "cer", "cer"), 0.01, "out_of_domain ca: cer under"),
        (
            ("evaluations", 0, "scores", "whisper", "wer", "insertions"),
            999,
            "in_domain ca: insertions (wer) under 'whisper' is recorded as 999, but its hypotheses",
        ),
        (("evaluations", 0, "scores", "marks", "wer", "hits"), 1, "in_domain ca: hits (wer) under"),
        (
            ("forgetting", 0, "scores", "marks", "wer", "wer"),
            0.01,
            "transcribe-cs cs: wer under 'marks' is recorded as 0.01, but its hypotheses give",
        ),
        (("forgetting", 1, "clips"), 3, "translate-ca ca: 20 clips published, 3 said"),
        (("evaluations", 0, "clips"), 3, "in_domain ca: 120 clips published, 3 said"),
    ],
)
def test_every_change_is_found(study, tmp_path, place, value, finding):
    changed = copy.deepcopy(study)
    target = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    done = rescore([changed], tmp_path)
    assert len(done.findings) == 1 and finding in done.findings[0]
    assert "1 value came out otherwise" in str(done)


def test_the_committed_records_score_again():
    results = Path(__file__).parents[2] / "results"
    for folder, evaluations, forgetting in ((results / "demo", 28, 24), (results, 0, 0)):
        done = rescore(load_records(folder), folder)
        assert done.findings == [] and done.unpublished == 0
        assert done.evaluations >= evaluations and done.forgetting >= forgetting
