"""Translation into English: paired by sentence, by the route asked for, scored by sacrebleu."""

from __future__ import annotations

import pytest
import sacrebleu
import torch

from distilwhisper_lib import UserError
from distilwhisper_lib.data.corpora import read_folder
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.translation import pair_with_english, score_translation, translate


@pytest.fixture
def tables(speech_folder):
    source = read_folder(speech_folder("ca", language="ca", clips=4), "ca", "test")
    english = read_folder(speech_folder("en", language="en", clips=4), "en", "test")
    source["sentence_id"] = ["7", "8", "9", "9"]
    english["sentence_id"] = ["9", "8", "8", "1"]  # two readers of 8; nobody reads 7
    english["text"] = ["nine", "eight", "eight", "one"]
    return source, english


def test_clips_pair_by_sentence(tables):
    paired = pair_with_english(*tables)
    assert list(paired["id"]) == list(tables[0]["id"][1:])
    assert list(paired["text"]) == ["eight", "nine", "nine"]
    assert set(paired["language"]) == {"ca"}
    with pytest.raises(UserError, match="no column 'sentence_id'"):
        pair_with_english(tables[0], tables[1].drop(columns="sentence_id"))
    with pytest.raises(UserError, match="no sentence id stands in both"):
        pair_with_english(tables[0].head(1), tables[1])


def test_the_shared_route_is_a_model_without_experts(tables, tiny_model, processor):
    paired = pair_with_english(*tables)
    options = {"max_new_tokens": 8, "progress": False}
    model = tiny_model("ca")
    shared = translate(model, processor, paired, **options)
    assert {tuple(row["gates"]["encoder"]) for row in shared} == {(0.0, 0.0)}
    encoder = translate(model, processor, paired, route="encoder", **options)
    assert all(max(row["gates"]["encoder"]) > 0 for row in encoder)
    assert {tuple(row["gates"]["decoder"]) for row in encoder} == {(0.0, 0.0)}
    spoken = transcribe(model, processor, paired, **options)
    assert all(max(row["gates"]["decoder"]) > 0 for row in spoken)
    model.remove_expert("ca")
    alone = translate(model, processor, paired, **options)
    assert [r["hypothesis"] for r in alone] == [r["hypothesis"] for r in shared]
    assert [r["hypothesis"] for r in encoder] != [r["hypothesis"] for r in shared]
    with pytest.raises(UserError, match="route 'decoder' is unknown"):
        translate(model, processor, paired, route="decoder")


def test_results_of_another_route_or_task_are_not_read_back(
    tables, tiny_model, processor, tmp_path, monkeypatch
):
    paired = pair_with_english(*tables)
    options = {"max_new_tokens": 8, "progress": False}
    model, path = tiny_model("ca"), tmp_path / "out" / "ca.jsonl"
    shared = translate(model, processor, paired, path, **options)
    content = path.read_bytes()
    assert translate(model, processor, paired, path, **options) == shared
    with pytest.raises(UserError, match="ca.jsonl is for a translation by route 'shared'") as error:
        translate(model, processor, paired, path, route="encoder", **options)
    assert "expected one by route 'encoder': name another file" in str(error.value)
    assert path.read_bytes() == content
    other = path.with_name("other.jsonl")
    encoder = translate(model, processor, paired, other, route="encoder", **options)
    assert [r["hypothesis"] for r in encoder] != [r["hypothesis"] for r in shared]
    spoken = path.with_name("spoken.jsonl")
    transcribe(model, processor, paired, spoken, **options)
    with pytest.raises(UserError, match="spoken.jsonl is for no translation"):
        translate(model, processor, paired, spoken, **options)

    cut = path.with_name("cut.jsonl")
    whole, asked = model.generate, []

    def interrupted(**arguments):
        asked.append(arguments)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return whole(**arguments)

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            translate(model, processor, paired, cut, batch_size=2, **options)
    assert not cut.exists() and len(list(cut.parent.glob("cut.*.jsonl"))) == 1
    with pytest.raises(UserError, match="cut.jsonl is for a translation by route 'shared'"):
        translate(model, processor, paired, cut, route="encoder", **options)
    assert translate(model, processor, paired, cut, **options) == shared


@torch.no_grad()
def test_the_encoder_alone_routes_each_row(tiny_model):
    model = tiny_model("ca")
    features = torch.randn(2, 80, 300)
    mixed = model.encode(features, ["ca", "en"]).last_hidden_state
    shared = model.model.encoder(features).last_hidden_state
    assert not torch.allclose(mixed[0], shared[0], atol=1e-3)
    torch.testing.assert_close(mixed[1], shared[1], atol=1e-5, rtol=1e-5)


def test_scores_are_sacrebleus_with_their_signatures():
    pairs = [("the cat sat on the mat today", "the cat sat on a mat today"), ("yes", "yes")]
    rows = [{"hypothesis": h, "reference": r} for h, r in pairs]
    scores = score_translation(rows)
    hypotheses, references = zip(*pairs, strict=True)
    expected = sacrebleu.corpus_bleu(list(hypotheses), [list(references)])
    assert scores["bleu"] == pytest.approx(expected.score, abs=0.01)
    assert scores["utterances"] == 2
    assert "version:" in scores["bleu_signature"] and "version:" in scores["chrf_signature"]
    with pytest.raises(UserError, match="no translation to score"):
        score_translation([])
