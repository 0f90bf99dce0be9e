"""transcribe(): one path for every model, resumable, with gates recorded on the way."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transcribing import run

from distilwhisper_lib import UserError
from distilwhisper_lib.evaluation import decoding as kit_evaluation
from distilwhisper_lib.evaluation.decoding import (
    evaluating,
    read_hypotheses,
    scores_path,
    timing_path,
)
from distilwhisper_lib.gates.recorder import GateRecorder, inspect_clip
from distilwhisper_lib.speech.features import SpeechDataset, extract_features


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
    how = json.loads(timing_path(path).read_text())
    assert how.pop("seconds") > 0
    assert how == {
        "audio_seconds": round(sum(table["seconds"]), 2), "precision": "fp32", "batch_size": 4
    }  # fmt: skip
    left = {path.name, timing_path(path).name, scores_path(path).name}
    assert {p.name for p in path.parent.iterdir()} == left


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
    partial = path.with_suffix(".batches.jsonl")
    (finished,) = map(json.loads, partial.read_text().splitlines())
    assert len(finished["rows"]) == 2
    long_ago = finished | {"seconds": 1000.0}
    partial.write_text(json.dumps(long_ago) + '\n{"rows": [{"id": "torn by a po')
    run(model, processor, table, path, batch_size=2)
    how = json.loads(timing_path(path).read_text())
    assert 1000 < how["seconds"] < 1100  # what was decoded before the kill counts as well
    assert how["audio_seconds"] == round(sum(table["seconds"]), 2)
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
    with GateRecorder(model) as recorder, torch.no_grad():
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
    with torch.no_grad():
        model(features, ids)
    with pytest.raises((RuntimeError, ValueError), match="non-empty"):  # the hooks are gone
        recorder.take()


def test_one_clip_is_laid_open_gate_by_gate(tiny_model, processor, table):
    example = inspect_clip(tiny_model("ca"), processor, table.iloc[1].to_dict(), max_new_tokens=6)
    assert example["tokens"][:2] == ["<|startoftranscript|>", "<|ca|>"]
    assert len(example["token_gates"]) == 2
    assert {len(layer) for layer in example["token_gates"]} == {len(example["tokens"])}
    assert {len(layer) for layer in example["frame_gates"]} == {38}  # 0.75 s at 20 ms
    assert set(sum(example["token_gates"], [])) <= {0, 1}


def test_validation_leaves_the_model_training(tiny_model, processor, table):
    model = tiny_model("ca").train()
    run(model, processor, table)
    assert model.training


def test_lines_hold_any_text(tiny_model, processor, table, tmp_path):
    table = table.assign(text="una\u2028línia\x85i mitja")
    rows = run(tiny_model(), processor, table, tmp_path / "x.jsonl")
    assert read_hypotheses(tmp_path / "x.jsonl") == rows


# Memory --------------------------------------------------------------------------------------


@pytest.fixture
def room_for(monkeypatch, tiny_model):
    """Factory of a model with memory for so many rows at once, and of what it was asked for."""

    def make(rows, error=None):
        model = tiny_model("ca")
        generate, asked = type(model).generate, []

        def limited(self, *args, **kwargs):
            asked.append(kwargs["input_features"].shape[0])
            if asked[-1] > rows:
                raise error or torch.OutOfMemoryError("CUDA out of memory.")
            return generate(self, *args, **kwargs)

        monkeypatch.setattr(type(model), "generate", limited)
        return model, asked

    return make


@pytest.mark.parametrize(
    "error",
    [
        None,
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_batches_are_halved_until_they_fit(error, room_for, processor, table, tmp_path):
    model, asked = room_for(2, error)
    rows = run(model, processor, table, tmp_path / "x.jsonl", batch_size=5)
    assert asked == [5, 2, 2, 2]  # found once, remembered
    assert json.loads(timing_path(tmp_path / "x.jsonl").read_text())["batch_size"] == 2
    assert rows == run(model, processor, table, batch_size=2)


def test_the_size_that_fits_is_remembered_over_a_kill(room_for, processor, table, tmp_path):
    model, asked = room_for(2)
    path = tmp_path / "x.jsonl"
    run(model, processor, table, path, batch_size=4)
    last = {"rows": read_hypotheses(path)[-1:], "seconds": 1.0, "batch_size": 2}
    path.unlink()
    batches = path.with_suffix(".batches.jsonl")
    batches.write_text(json.dumps(last | {"precision": "fp32"}) + "\n")
    asked.clear()
    run(model, processor, table, path, batch_size=4)
    assert asked == [2, 2, 1]


def test_a_clip_that_does_not_fit_is_one_sentence_and_the_rest_is_kept(
    tiny_model, processor, table, tmp_path, monkeypatch
):
    model, decoded = tiny_model("ca"), []
    path = tmp_path / "x.jsonl"
    table = table.assign(seconds=[6.0, 1.0, 1.0, 5.0, 4.0, 4.0])
    transcribe_batch = kit_evaluation.transcribe_batch

    def no_room_for_one(model, processor, batch, *args, **options):
        if "test1" in set(batch["id"]) and not decoded:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        decoded.extend(batch["id"] if decoded else [])
        return transcribe_batch(model, processor, batch, *args, **options)

    monkeypatch.setattr(kit_evaluation, "transcribe_batch", no_room_for_one)
    with pytest.raises(UserError, match="'test1' .1.0 s. does not fit .* the 5 clips") as error:
        run(model, processor, table, path, batch_size=4)
    assert "\n" not in str(error.value)
    decoded.append("on another machine, later")
    assert len(run(model, processor, table, path, batch_size=4)) == 6
    assert decoded[1:] == ["test1"]


def test_other_errors_are_not_taken_for_want_of_memory(room_for, processor, table):
    model, asked = room_for(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(model, processor, table)
    assert len(asked) == 1


# Precision -----------------------------------------------------------------------------------


def lora(model):
    config = LoraConfig(r=4, target_modules=["fc1", "fc2"], init_lora_weights=False)
    return get_peft_model(model, config)


@pytest.mark.parametrize("dress", [lambda m: m, lora])
def test_half_precision_leaves_the_model_as_it_was(dress, tiny_model, processor, table, tmp_path):
    model = dress(tiny_model() if dress is lora else tiny_model("ca")).train()
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    grads = {name: p.requires_grad for name, p in model.named_parameters()}
    rows = run(model, processor, table, tmp_path / "x.jsonl", precision="bf16")
    assert len(rows) == len(table)
    assert json.loads(timing_path(tmp_path / "x.jsonl").read_text())["precision"] == "bf16"
    assert model.training
    for name, p in model.named_parameters():
        pointer, values = before[name]
        assert p.dtype == torch.float32 and p.data_ptr() == pointer and torch.equal(p, values)
        assert p.requires_grad == grads[name]


def test_the_copy_is_half_but_for_the_gates_and_keeps_what_is_tied(tiny_model):
    model = tiny_model("ca")
    with evaluating(model, "bf16") as half:
        dtypes = {name: p.dtype for name, p in half.named_parameters()}
        assert {d for n, d in dtypes.items() if ".gate." in n} == {torch.float32}
        assert {d for n, d in dtypes.items() if ".gate." not in n} == {torch.bfloat16}
        assert half.proj_out.weight is half.model.decoder.embed_tokens.weight
        assert not half.training and half is not model
    with evaluating(model) as same:  # the CPU's "auto"
        assert same is model
    half = model.to(torch.bfloat16)
    with evaluating(half) as same:  # as it was loaded
        assert same is half


def test_bfloat16_says_nearly_the_same(tiny_model, processor, table):
    """On random weights single tokens tip over; most must not."""
    model = tiny_model("ca")
    texts = [
        [row["hypothesis"] for row in run(model, processor, table, precision=p)]
        for p in ("fp32", "bf16")
    ]
    assert sum(a == b for a, b in zip(*texts, strict=True)) >= len(table) / 2


def test_a_model_decodes_as_it_would_outside_training(tiny_model, processor, table):
    """Mixed-precision training wraps forward(): validation must not go through that."""
    model = tiny_model("ca")
    expected = run(model, processor, table)
    model.forward = wrapped = lambda *_, **__: pytest.fail("went through training's forward")
    assert run(model, processor, table) == expected
    run(model, processor, table, precision="bf16")
    assert model.forward is wrapped
