"""transcribe(): one path for every model, resumable, with gates recorded on the way."""

from __future__ import annotations

import json

import pytest
import torch

from distilwhisper_lib import gates as kit_gates
from distilwhisper_lib.corpora import read_folder
from distilwhisper_lib.evaluation import read_hypotheses, timing_path, transcribe
from distilwhisper_lib.features import SpeechDataset, extract_features


@pytest.fixture
def table(speech_folder):
    return read_folder(speech_folder(clips=6), "ca", "test")


def run(model, processor, table, path=None, **options):
    options = {"max_new_tokens": 6, "batch_size": 4, "progress": False} | options
    return transcribe(model, processor, table, path, **options)


def test_rows_come_in_the_tables_order_with_all_fields(tiny_model, processor, table, tmp_path):
    path = tmp_path / "out" / "in_domain-test.jsonl"
    rows = run(tiny_model("ca"), processor, table, path)
    assert [row["id"] for row in rows] == list(table["id"])
    assert [row["reference"] for row in rows] == list(table["text"])
    assert set(rows[0]) == {
        "id", "reference", "hypothesis", "language", "speaker", "seconds", "tokens", "capped",
        "gates",
    }  # fmt: skip
    assert read_hypotheses(path) == rows
    assert json.loads(timing_path(path).read_text())["seconds"] > 0
    assert {p.name for p in path.parent.iterdir()} == {path.name, timing_path(path).name}


def test_batch_size_does_not_change_what_is_heard(tiny_model, processor, table):
    model = tiny_model("ca")
    one = run(model, processor, table, batch_size=1)
    assert [r["hypothesis"] for r in one] == [
        r["hypothesis"] for r in run(model, processor, table, batch_size=6)
    ]


def test_an_interrupted_call_goes_on_and_gives_the_same_file(
    tiny_model, processor, table, tmp_path, monkeypatch
):
    model = tiny_model("ca")
    whole, path = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    run(model, processor, table, whole, batch_size=2)
    generate, calls = type(model).generate, []

    def interrupted(self, *args, **kwargs):
        calls.append(kwargs["input_features"].shape[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(model, processor, table, path, batch_size=2)
    assert not path.exists()
    partial = path.with_suffix(".partial.jsonl")
    assert len(partial.read_text().splitlines()) == 2
    with partial.open("a") as file:
        file.write('{"id": "torn by a po')
    run(model, processor, table, path, batch_size=2)
    assert calls[2:] == [2, 2]  # the finished batch is not decoded again
    assert path.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(type(model), "generate", None)  # would fail if called
    assert run(model, processor, table, path) == read_hypotheses(whole)


def test_the_token_limit_is_marked(tiny_model, processor, table):
    rows = run(tiny_model(), processor, table, max_new_tokens=3)
    assert all(row["capped"] is (row["tokens"] >= 3) for row in rows)
    assert any(row["capped"] for row in rows)
    assert rows[0]["gates"] is None  # no experts, no gates


def test_recorded_gates_are_those_of_a_teacher_forced_pass(tiny_model, processor, table):
    """What the recorder heard step by step equals one pass over the same tokens."""
    model = tiny_model("ca")
    clip = SpeechDataset(table)[5]
    features = extract_features(processor.feature_extractor, [clip["audio"]])
    with kit_gates.GateRecorder(model) as recorder, torch.no_grad():
        ids = model.generate(
            features, language="ca", task="transcribe", max_new_tokens=6,
            return_dict_in_generate=True,
        ).sequences  # fmt: skip
    heard = recorder.take()
    forced = model(features, ids[:, :-1], output_gates=True).gates
    for side in ("encoder", "decoder"):
        expected = torch.stack([g.values for g in getattr(forced, side)]).bool()
        assert torch.equal(heard[side][..., : expected.shape[-1]], expected)
    assert heard["encoder"].any() and not heard["encoder"].all()
    with torch.no_grad():  # hooks are gone
        model(features, ids)
    assert recorder._heard["encoder"][0] == []


def test_shares_leave_padding_out(tiny_model, processor, table):
    gates = {
        "encoder": torch.tensor([[[1, 1, 0, 0], [1, 0, 0, 0]]]).bool(),  # (layers, B, frames)
        "decoder": torch.tensor([[[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]]).bool(),
    }
    shares = kit_gates.utterance_shares(gates, torch.tensor([2, 4]), [1, 0])
    assert shares == [
        {"encoder": [1.0], "decoder": [0.8]},
        {"encoder": [0.25], "decoder": [0.0]},
    ]


def test_a_summary_weighs_clips_and_brackets_the_mean():
    rows = [
        {"seconds": 3.0, "tokens": 2, "gates": {"encoder": [1.0], "decoder": [0.5]}},
        {"seconds": 1.0, "tokens": 8, "gates": {"encoder": [0.0], "decoder": [0.5]}},
    ] * 20
    summary = kit_gates.summarise(rows)
    assert summary["encoder"] == [0.75]
    assert summary["decoder"] == [0.5]
    ((low, high),) = summary["encoder_interval"]  # one pair a layer
    assert low < 0.75 < high
    assert summary["clips"] == 40


def test_one_clip_is_laid_open_gate_by_gate(tiny_model, processor, table):
    example = kit_gates.inspect_clip(
        tiny_model("ca"), processor, table.iloc[1].to_dict(), max_new_tokens=6
    )
    assert example["tokens"][:2] == ["<|startoftranscript|>", "<|ca|>"]
    assert len(example["token_gates"]) == 2
    assert {len(layer) for layer in example["token_gates"]} == {len(example["tokens"])}
    assert {len(layer) for layer in example["frame_gates"]} == {38}  # 0.75 s at 20 ms
    assert set(sum(example["token_gates"], [])) <= {0, 1}


def test_validation_leaves_the_model_training(tiny_model, processor, table):
    model = tiny_model("ca").train()
    run(model, processor, table)
    assert model.training
