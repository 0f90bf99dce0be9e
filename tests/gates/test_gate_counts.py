"""Gates counted while decoding: by class and by score; and what a token is."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transcribing import run

from distilwhisper_lib.evaluation.decoding import read_hypotheses, scores_path
from distilwhisper_lib.gates.counts import (
    BINS,
    REST,
    SCORE_EDGES,
    SIDES,
    add_histograms,
    count_gates,
    token_classes,
    token_texts,
)
from distilwhisper_lib.gates.recorder import GateRecorder
from distilwhisper_lib.model.clsr import SHARED
from distilwhisper_lib.speech.features import SpeechDataset, extract_features

# Token classes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("la casa", "l|w a|i c|w a|i s|i a|i"),
        ("casa, blava!", "c|w a|i s|i a|i ,|p b|w l|i a|i v|i a|i !|p"),
        ("«un»", "«|p u|w n|i »|p"),  # the word begins after its quotation mark
        ("d'or", "d|w '|p o|i r|i"),  # one stretch between spaces
        ("a - b", "a|w -|p b|w"),
        ("été", "é|w t|i é|i"),
        ("ไทย นะ", "ไ|w ท|i ย|i น|w ะ|i"),  # no spaces between words: the phrase begins a stretch
        ("。よ", "。|p よ|w"),
        ("மொழி", "ம|w ொ|i ழ|i ி|i"),  # vowel signs are marks, not punctuation
    ],
)
def test_tokens_are_classed_as_their_characters_are(processor, text, expected):
    """Whatever the byte-level merges: every byte's class is that of its character."""
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = token_classes(tokenizer, ids)
    per_character = [pair.rsplit("|", 1) for pair in expected.split()]
    spelled = "".join(c for c in text if not c.isspace())
    assert [c for c, _ in per_character] == list(spelled)
    # Independent: offsets of the tokenizer itself say which characters a token covers.
    offsets = tokenizer._tokenizer.encode(text, add_special_tokens=False).offsets
    classes = dict(enumerate(kind for _, kind in per_character))
    place = {i: len(text[:i].replace(" ", "")) for i, c in enumerate(text) if c != " "}
    seen = set()
    for name, (start, end) in zip(found, offsets, strict=True):
        covered = [place[i] for i in range(start, end) if i in place]
        if not covered:  # a space by itself goes with what comes next
            covered = [place[end]]
            if classes[covered[0]] == "w":
                assert name == "word_initial"
                seen.add(covered[0])
                continue
        kinds = [classes[c] for c in covered]
        if all(kind == "p" for kind in kinds):
            assert name == "punctuation"
        elif "w" in kinds and not seen & set(covered):
            assert name == "word_initial"
        else:
            assert name == "inside", (text, name, covered)
        seen |= set(covered)
    assert "word_initial" in found


def test_special_tokens_and_broken_bytes_do_not_derail_the_classes(processor, token):
    tokenizer = processor.tokenizer
    prompt = [token("<|startoftranscript|>"), token("<|ca|>")]
    word = tokenizer("la", add_special_tokens=False).input_ids
    half = tokenizer("é", add_special_tokens=False).input_ids[:1]
    assert token_classes(tokenizer, prompt) == ["prompt", "prompt"]
    assert token_classes(tokenizer, [*word, *prompt[:1], *half]) == [
        "word_initial", "prompt", "inside",
    ]  # fmt: skip
    assert token_classes(tokenizer, []) == []


@pytest.mark.parametrize("text", ["Ďábel je tu.", "แมวกินปลา", "தமிழ் மொழி", "a😀b"])
def test_a_character_cut_over_tokens_stands_in_the_first(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False).input_ids
    texts = token_texts(tokenizer, ids)
    assert "".join(texts).replace(REST, "") == text
    cut = ["\ufffd" in tokenizer.decode([token]) for token in ids]
    assert any(cut) and not any("\ufffd" in token for token in texts)
    for whole, token, said in zip(cut, ids, texts, strict=True):
        assert whole or said == tokenizer.decode([token])


def test_special_tokens_are_named_and_broken_bytes_marked(processor, token):
    half = processor.tokenizer("😀", add_special_tokens=False).input_ids[:1]
    found = token_texts(processor.tokenizer, [token("<|ca|>"), *half])
    assert found == ["<|ca|>", "\ufffd"]


# Counting ------------------------------------------------------------------------------------


def heard_of(encoder, decoder):
    """Recorder output from scores: (layers, B, positions) nested lists."""
    taken = {}
    for side, scores in (("encoder", encoder), ("decoder", decoder)):
        scores = torch.tensor(scores, dtype=torch.float32)
        taken |= {side: scores >= 0, f"{side}_scores": scores}
    return taken


def test_counts_by_class_leave_nothing_out():
    heard = heard_of(
        [[[1.0, -1, 2, 3], [-1, 1, -1, -1]]],
        [[[1.0, 1, 1, 1, -1, -1], [-1, -1, -1, -1, 1, 1]]],
    )
    classes = [["prompt"] * 4 + ["word_initial"], ["prompt"] * 4 + ["punctuation"] * 3]
    rows, scores = count_gates(heard, torch.tensor([2, 4]), classes)
    first, second = rows
    assert first["positions"] == {
        "audio": 2, "padding": 2, "prompt": 4, "word_initial": 1, "inside": 0, "punctuation": 0
    }  # fmt: skip
    assert first["expert"] == {"audio": [1], "padding": [2], "prompt": [4], "word_initial": [0]}
    assert (first["encoder"], first["decoder"]) == ([0.5], [0.8])
    # The third punctuation token was the last one and never went through the layers.
    assert second["positions"]["punctuation"] == 2 and second["expert"]["punctuation"] == [2]
    assert (second["encoder"], second["decoder"]) == ([0.25], [0.3333])
    sigmoid = 1 / (1 + np.exp(-1))
    assert first["soft"]["encoder"] == [0.5]  # of 1 and -1
    assert second["soft"]["encoder"] == [round((3 * (1 - sigmoid) + sigmoid) / 4, 4)]
    assert [sum(scores[side][0]) for side in SIDES] == [2 + 4, 5 + 6]


def test_histograms_are_numpys_and_split_at_zero():
    rng = np.random.default_rng(0)
    values = (rng.normal(0, 1, (2, 3, 50)) * 10.0 ** rng.integers(-3, 3, (2, 3, 50))).astype("f4")
    values[0, 0, :4] = [0.0, -0.0, 0.01, -0.01]
    heard = heard_of(values.tolist(), np.zeros((2, 3, 4)).tolist())
    audio = torch.tensor([50, 20, 7])
    _, scores = count_gates(heard, audio, [["prompt"] * 4] * 3)
    edges = np.array([-np.inf, *SCORE_EDGES, np.inf], dtype="f4")
    for layer in range(2):
        kept = np.concatenate([values[layer, row, :n] for row, n in enumerate(audio.tolist())])
        assert scores["encoder"][layer] == np.histogram(kept, edges)[0].tolist()
        assert sum(scores["encoder"][layer][BINS // 2 :]) == (kept >= 0).sum()
    twice = add_histograms([scores, scores])
    assert twice["encoder"][1] == [2 * n for n in scores["encoder"][1]]


# The recorder on every route -----------------------------------------------------------------


def listen(model, processor, table, **options):
    audio = [clip["audio"] for clip in SpeechDataset(table)]
    features = extract_features(processor.feature_extractor, audio)
    with GateRecorder(model) as recorder, torch.no_grad():
        ids = model.generate(features, task="transcribe", max_new_tokens=5, **options)
    return recorder.take(), ids


@pytest.mark.parametrize("ranks", [None, {"cs": 4}])
def test_scores_are_each_rows_own_on_either_route(tiny_model, processor, table, monkeypatch, ranks):
    """Sparse routing asks each expert about its rows only, dense routing about all of them."""
    model = tiny_model("ca", "cs", ranks=ranks)
    languages = ["cs", "ca", "en", "ca", "cs", "en"]
    sparse, ids = listen(model, processor, table, language=languages)
    monkeypatch.setattr("distilwhisper_lib.model.clsr.CLSR.dense", True)
    dense, same = listen(model, processor, table, language=languages)
    assert torch.equal(ids, same)
    experts = torch.tensor([1, 0, SHARED, 0, 1, SHARED])
    for side in SIDES:
        scores = sparse[f"{side}_scores"]
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, dense[f"{side}_scores"], equal_nan=True)
        assert torch.equal(scores.isnan(), (experts == SHARED)[None, :, None].expand_as(scores))
        assert torch.equal(scores >= 0, sparse[side])  # NaN is not
    # Independent: the gates applied to what went into the first encoder layer's block.
    layer, inputs = model.model.encoder.layers[0], []
    layer.clsr.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    monkeypatch.setattr("distilwhisper_lib.model.clsr.CLSR.dense", False)
    listen(model, processor, table, language=languages)
    for row, code in enumerate(languages):
        if code != "en":
            expected = layer.clsr[code].gate(inputs[0][row])
            torch.testing.assert_close(sparse["encoder_scores"][0, row], expected)


@pytest.mark.parametrize("mode", ["open", "closed"])
def test_forced_gates_have_no_scores(tiny_model, processor, table, mode):
    heard, _ = listen(tiny_model("ca"), processor, table, language="ca", gate_mode=mode)
    for side in SIDES:
        assert heard[side].all() if mode == "open" else not heard[side].any()
        assert heard[f"{side}_scores"].isnan().all()
        assert heard[f"{side}_scores"].shape == heard[side].shape
    classes = [["prompt"] * 4] * len(table)
    rows, scores = count_gates(heard, torch.full((len(table),), 10), classes)
    assert {row["soft"]["encoder"] for row in rows} == {None}
    assert not np.any(scores["encoder"])


def test_a_soft_gate_counts_as_the_experts_from_one_half_on(tiny_model, processor, table):
    """Where it weighs the expert at least as much: as its score, 0 included, would choose."""
    model = tiny_model("ca")
    first = model.model.encoder.layers[0].clsr["ca"].gate
    torch.nn.init.zeros_(first.outer.weight)  # every score is 0, every soft gate one half
    heard, _ = listen(model, processor, table, language="ca", gate_mode="soft")
    assert heard["encoder"].dtype == torch.bool and heard["encoder"][0].all()
    for side in SIDES:
        scores = heard[f"{side}_scores"]
        assert torch.equal(heard[side], scores >= 0)
        assert len(scores[1].unique()) > 10
    assert 0 < heard["encoder"].float().mean() < 1


def test_forced_shares_are_heard_without_scores(tiny_model, processor, table):
    torch.manual_seed(2)
    shares = {"encoder.1": 0.3, "encoder.2": 1.0, "decoder.1": 0.0, "decoder.2": 0.6}
    heard, _ = listen(tiny_model("ca"), processor, table, language="ca", gate_mode=shares)
    means = [heard[side][layer].float().mean().item() for side in SIDES for layer in (0, 1)]
    assert means[1:3] == [1.0, 0.0]
    assert means[0] == pytest.approx(0.3, abs=0.07) and means[3] == pytest.approx(0.6, abs=0.3)
    assert all(heard[f"{side}_scores"].isnan().all() for side in SIDES)


def test_listening_changes_nothing_that_is_heard(tiny_model, processor, table):
    model = tiny_model("ca")
    features = extract_features(
        processor.feature_extractor, [clip["audio"] for clip in SpeechDataset(table)]
    )
    options = dict(
        language="ca", task="transcribe", max_new_tokens=5, return_dict_in_generate=True,
        output_logits=True,
    )  # fmt: skip
    alone = model.generate(features, **options)
    with GateRecorder(model):
        heard = model.generate(features, **options)
    assert torch.equal(alone.sequences, heard.sequences)
    assert all(torch.equal(a, b) for a, b in zip(alone.logits, heard.logits, strict=True))
    assert not any(m._forward_hooks for m in model.modules())  # and nothing stays behind


# While transcribing --------------------------------------------------------------------------


def test_scores_survive_an_interruption(tiny_model, processor, table, tmp_path, monkeypatch):
    model, whole, torn = tiny_model("ca"), tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    rows = run(model, processor, table, whole, batch_size=2)
    generate, calls = type(model).generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, processor, table, torn, batch_size=2)
    run(model, processor, table, torn, batch_size=2)
    assert scores_path(torn).read_bytes() == scores_path(whole).read_bytes()
    scores = json.loads(scores_path(whole).read_text())
    for layer in range(2):
        taken = sum(row["gates"]["expert"]["audio"][layer] for row in rows)
        assert sum(scores["encoder"][layer][BINS // 2 :]) == taken


def test_translation_and_strangers_have_no_scores(tiny_model, processor, table, tmp_path):
    model = tiny_model("ca")
    rows = run(model, processor, table.assign(language="en"), tmp_path / "x.jsonl")
    assert rows == read_hypotheses(tmp_path / "x.jsonl")
    assert {row["gates"]["soft"]["decoder"] for row in rows} == {None}
    assert {max(row["gates"]["decoder"]) for row in rows} == {0.0}
