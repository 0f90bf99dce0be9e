"""A shorter window: the same Whisper with fewer positions, in training, resuming and decoding."""

from __future__ import annotations

import pytest
import torch
from transformers import WhisperForConditionalGeneration

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.speech.features import Collator, SpeechDataset
from distilwhisper_lib.training.loop import build_targets, find_teacher, train
from distilwhisper_lib.transcription.transcriber import Transcriber

SHORT = {"window_seconds": 2, "max_seconds": 2.0}


@pytest.fixture
def configured(study_of):
    return study_of(clips=4, epochs=1, max_steps=2)


def test_a_shorter_window_is_a_whisper_built_with_fewer_positions(configured):
    whole, _ = load_model("student")
    model, processor = load_model("student", window_seconds=2)
    plain = whole.config.to_dict() | {"max_source_positions": 100}
    expected = WhisperForConditionalGeneration(type(whole.config)(**plain)).eval()
    weights = whole.state_dict()
    weights["model.encoder.embed_positions.weight"] = weights[
        "model.encoder.embed_positions.weight"
    ][:100]
    expected.load_state_dict(weights)
    table = load_data(configured("full", **SHORT)).train
    batch = Collator(processor)(list(SpeechDataset(table)))
    assert batch["input_features"].shape[-1] == 200
    inputs = {name: batch[name] for name in ("input_features", "decoder_input_ids")}
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, expected(**inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not model.model.encoder.embed_positions.weight.requires_grad


@pytest.mark.parametrize("method", ["full", "js"])
def test_a_run_keeps_its_window(method, configured):
    config = configured(method, **SHORT)
    assert config.run_id != configured(method, max_seconds=2.0).run_id
    data = load_data(config)
    trained = train(config, data)
    evaluations = evaluate(trained, data)
    assert record_run(trained, data, evaluations)["config"]["window_seconds"] == 2
    run = load_run(config.output_dir)
    assert run.processor.feature_extractor.n_samples == 2 * 16_000
    said = Transcriber.load(config.output_dir)
    assert said.window == 2
    if method == "js":
        assert find_teacher(config).config.max_source_positions == 100
        assert find_teacher(configured(method)).config.max_source_positions == 150


def test_a_fully_tuned_model_teaches_the_next_run(configured):
    first = configured("full", **SHORT)
    train(first, load_data(first))
    config = configured("js", teacher=str(first.output_dir / "model"), **SHORT)
    trained = train(config, load_data(config))
    assert trained.training["steps"] == 2
    assert trained.models["teacher"]["sha256"] != trained.models["student"]["sha256"]


def test_targets_that_a_task_works_out_are_those_that_a_run_of_this_window_reads(configured):
    config = configured("js", **SHORT)
    build_targets(config, load_data(config))
    trained = train(config, load_data(config))
    assert not trained.training["teacher_targets"]["built"]


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="window_seconds=2 cuts clips of up to max_seconds=3:"):
        resolve("js", overrides={"window_seconds": 2})
    with pytest.raises(UserError, match="window_seconds=0 is out of range"):
        resolve("js", overrides={"window_seconds": 0})
    with pytest.raises(UserError, match="window_seconds=10 is longer than .* at once, 3 s"):
        load_model("embedded/student", window_seconds=10)
