"""A model that cannot do what a run asks is one sentence, before a corpus is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from distilwhisper_lib.config.settings import METHODS
from distilwhisper_lib.data import splits
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.training.loop import train


@pytest.fixture
def study(study_of):
    return study_of(clips=2)


def changed(folder, name: str, **fields) -> None:
    path = folder / name
    kept = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in kept.items() if value is not None}))


def refused(config, monkeypatch, message: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(splits, "open_corpus", lambda *_: pytest.fail("a corpus was read"))
        with pytest.raises(UserError, match=message):
            load_data(config)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        (
            "generation_config.json",
            {"lang_to_id": {"<|cs|>": 1}},
            "'ca' is not in this model",
        ),
        (
            "generation_config.json",
            {"lang_to_id": None},
            "has no lang_to_id: give it the",
        ),
        (
            "generation_config.json",
            {"lang_to_id": None, "forced_decoder_ids": [[1, 2], [2, 3]]},
            "has no lang_to_id: give it the",
        ),
        ("generation_config.json", {"is_multilingual": False}, "is an English-only Whisper"),
        ("config.json", None, "no config.json in"),
    ],
)
def test_a_model_without_the_languages_token_is_refused_for_every_method(
    study, tmp_path, monkeypatch, file, fields, message
):
    for role in ("teacher", "student"):
        if fields is None:
            (tmp_path / role / file).unlink()
        else:
            changed(tmp_path / role, file, **fields)
        for method in ("teacher", "kl", "js") if role == "teacher" else METHODS:
            refused(study(method), monkeypatch, message)


def test_an_english_only_whisper_is_known_by_its_tokens(study, tmp_path, monkeypatch):
    (tmp_path / "student" / "generation_config.json").unlink()
    changed(tmp_path / "student", "config.json", vocab_size=51_864)
    refused(study("lora"), monkeypatch, "is an English-only Whisper, without tokens for languages")


@pytest.mark.parametrize(
    ("field", "value"), [("vocab_size", 51_866), ("num_mel_bins", 128), ("max_source_positions", 9)]
)
def test_a_teacher_that_does_not_fit_is_refused_before_it_decodes(
    study, tmp_path, monkeypatch, field, value
):
    changed(tmp_path / "teacher", "config.json", **{field: value})
    for method in ("teacher", "kl", "js"):
        refused(study(method), monkeypatch, f"the teacher has {field} {value}, ")
    load_data(study("lora"))  # which needs none


@pytest.mark.parametrize(
    "names",
    [("tokenizer.json", "vocab.json"), ("preprocessor_config.json", "processor_config.json")],
)
def test_a_checkpoint_without_processor_files_is_refused(study, tmp_path, monkeypatch, names):
    for name in names:
        (tmp_path / "student" / name).unlink(missing_ok=True)
    refused(study("lora"), monkeypatch, f"no {names[0]} or {names[1]} in .*: the student needs it")


def test_half_precision_weights_train_and_transcribe_as_any(study, tmp_path):
    model, _ = load_model(str(tmp_path / "student"))
    model.half().save_pretrained(tmp_path / "student")
    config = study("lora", max_steps=1)
    data = load_data(config)
    run = train(config, data)
    assert {tensor.dtype for tensor in run.model.parameters()} == {torch.float32}
    assert evaluate(run, data)


def test_a_run_that_needs_no_teacher_asks_for_none(study):
    load_data(replace(study("lora"), teacher="nowhere"))
