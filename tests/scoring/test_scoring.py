"""Scores equal jiwer's and the recorded ones; nothing needs a network or a writable home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jiwer
import pytest

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.scoring.metric import AsrErrors
from distilwhisper_lib.scoring.rates import METRICS, score, utterance_errors
from distilwhisper_lib.scoring.text import NORMALIZERS

ROOT = Path(__file__).resolve().parents[2]
CASES = json.loads((ROOT / "tests/golden/normalizer/cases.json").read_text(encoding="utf-8"))
PAIRS = CASES["pairs"]
COUNTS = ("substitutions", "deletions", "insertions", "hits")


def rows(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"reference": reference, "hypothesis": hypothesis} for reference, hypothesis in pairs]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["reference"])
def test_each_recorded_pair(pair):
    # The language only names the rows; Chinese is not among the kit's.
    scores = score(rows((pair["reference"], pair["hypothesis"])), "ca")["whisper"]
    assert 100 * scores["wer"]["wer"] == pytest.approx(pair["wer"])
    assert 100 * scores["cer"]["cer"] == pytest.approx(pair["cer"])
    assert [scores["wer"][name] for name in COUNTS] == [pair[f"word_{name}"] for name in COUNTS]


@pytest.mark.parametrize("code", ["ca", "th", "cs", "uk", "hi", "pl"])
def test_recorded_corpus_rates_pool_the_counts(code):
    pairs = [(p["reference"], p["hypothesis"]) for p in PAIRS if p["lang"] == code]
    scores = score(rows(*pairs), code)["whisper"]
    for metric in METRICS:
        recorded = CASES["corpus_metrics_over_all_pairs"][f"{metric}_{code}"]
        assert 100 * scores[metric][metric] == pytest.approx(recorded)
    assert scores["utterances"] == len(pairs)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_counts_are_jiwer_s(normalizer):
    normalize = NORMALIZERS[normalizer]
    references = [normalize(p["reference"]) for p in PAIRS]
    hypotheses = [normalize(p["hypothesis"]) for p in PAIRS]
    scores = score(rows(*((p["reference"], p["hypothesis"]) for p in PAIRS)), "ca")[normalizer]
    for metric, process in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
        direct = process(references, hypotheses)
        expected = {name: getattr(direct, name) for name in COUNTS}
        assert scores[metric] == {metric: getattr(direct, metric), **expected}


def test_the_shape_of_a_score_is_the_run_record_s():
    scores = score(rows(("el gat negre", "el gos negre")), "catalan")
    assert list(scores) == list(NORMALIZERS)
    for entry in scores.values():
        assert list(entry) == ["wer", "cer", "utterances", "empty_references"]
        assert entry["wer"] == {
            "wer": pytest.approx(1 / 3),
            "substitutions": 1,
            "deletions": 0,
            "insertions": 0,
            "hits": 2,
        }
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_empty_references_are_left_out_and_counted_per_normaliser():
    pairs = [("bon dia", "bon dia"), ("...", "soroll"), ("(riu)", "riu"), ("", "x y")]
    scores = score(rows(*pairs), "ca")
    assert scores["whisper"]["utterances"] == 1 and scores["whisper"]["empty_references"] == 3
    assert scores["marks"]["utterances"] == 2 and scores["marks"]["empty_references"] == 2
    assert scores["whisper"]["wer"]["wer"] == 0
    assert scores["marks"]["wer"]["hits"] == 3


def test_an_empty_hypothesis_counts_as_deletions():
    scores = score(rows(("un dos tres", ""), ("quatre", "...")), "ca")["marks"]
    assert scores["wer"]["wer"] == 1 and scores["wer"]["deletions"] == 4


def test_tone_errors_count_under_marks_only():
    scores = score(rows(("ใกล้", "ใกล่")), "th")
    assert scores["whisper"]["cer"]["cer"] == 0
    assert scores["marks"]["cer"]["substitutions"] == 1


def test_rows_may_come_from_a_generator_and_say_their_language():
    made = ({"reference": "a b", "hypothesis": "a", "language": "Catalan"} for _ in range(3))
    assert score(made, "ca")["marks"]["wer"]["deletions"] == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "None of the 0 references in language 'ca'"),
        (rows(("!", "x")), "None of the 1 references in language 'ca'"),
        ([{"reference": "a"}], "Row 1 .* has None as hypothesis"),
        ([{"id": "u7", "reference": 3, "hypothesis": ""}], r"Row 1 \(id 'u7'\) has 3 as reference"),
        ([rows(("a", "a"))[0] | {"language": "cs"}], "is in language 'cs', expected 'ca'"),
        ([rows(("a", "a"))[0] | {"language": "xx"}], "Unknown language 'xx'"),
    ],
)
def test_bad_rows(bad, message):
    with pytest.raises(UserError, match=message):
        score(bad, "ca")


def test_unknown_language():
    with pytest.raises(UserError, match="Unknown language 'elvish'"):
        score(rows(("a", "a")), "elvish")


def test_the_metric_refuses_what_it_cannot_score():
    with pytest.raises(ValueError, match="Unknown config 'mer': choose wer or cer"):
        AsrErrors("mer")
    with pytest.raises(ValueError, match="1 references are empty"):
        AsrErrors("wer").compute(predictions=["a", "b"], references=["a", " "])


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder closed even to root")
def test_offline_without_sockets_from_a_home_that_cannot_be_written(tmp_path):
    """Even root cannot make a folder in /proc, so the metric must do without."""
    script = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from distilwhisper_lib.scoring.rates import score\n"
        "rows = [{'reference': 'el gat', 'hypothesis': 'el gos'}]\n"
        "print(score(rows, 'ca')['marks']['wer']['wer'])\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    environment = kept | {
        "HOME": "/proc/nobody",
        "HF_HOME": "/proc/nobody/huggingface",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "0.5"
    assert not list(tmp_path.glob("distilwhisper-*"))  # the folder that evaluate asks for is gone


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_errors_by_utterance_add_up_to_the_score(metric, normalizer):
    pairs = [(p["reference"], p["hypothesis"]) for p in PAIRS] + [("...", "soroll"), ("a b", "")]
    total = score(rows(*pairs), "ca")[normalizer]
    found = utterance_errors(rows(*pairs), "ca", normalizer, metric)
    assert found.counts.shape == (len(pairs), 4)
    assert dict(zip(COUNTS, found.counts.sum(0).tolist(), strict=True)) == {
        name: total[metric][name] for name in COUNTS
    }
    assert found.errors.sum() / found.units.sum() == pytest.approx(total[metric][metric])
    assert (~found.scored).sum() == total["empty_references"]
    assert found.units[~found.scored].sum() == 0


def test_errors_by_utterance_are_jiwer_s_of_each_alone():
    found = utterance_errors(rows(("a b c d", "a x c d e"), ("u v", "v")), "ca", "marks", "wer")
    assert found.counts.tolist() == [[1, 0, 1, 3], [0, 1, 0, 1]]
    assert found.errors.tolist() == [2, 1] and found.units.tolist() == [4, 2]
