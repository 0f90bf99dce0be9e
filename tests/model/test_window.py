"""A shorter window: the same Whisper with fewer positions, in training, resuming and decoding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import RandomSampler
from transformers import WhisperForConditionalGeneration

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.evaluation.record import evaluate, record_run
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.losses.teacher import Teacher
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.model.tensors import read_metadata
from distilwhisper_lib.speech.features import Collator, SpeechDataset, extract_features, window_of
from distilwhisper_lib.training.loop import build_targets, find_teacher, train
from distilwhisper_lib.training.shares import MicroBatches
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
def test_a_run_keeps_its_window(method, configured, processor):
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
        assert find_teacher(config, processor).config.max_source_positions == 100
        assert find_teacher(configured(method), processor).config.max_source_positions == 150


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


# Windows that fit ----------------------------------------------------------------------------

FIT = {"window": "fit"}


def clip_of(seconds, number=0):
    noise = np.random.default_rng(number).normal(0, 0.1, int(seconds * 16_000))
    return noise.astype(np.float32)


def test_a_clip_is_heard_in_its_own_length_rounded_up_whoever_it_comes_with():
    fitted, processor = load_model("embedded/student", fit_window=True)
    whole = load_model("embedded/student")[1].feature_extractor
    for seconds, window in ((0.0, 1), (0.2, 2), (1.0, 2), (1.01, 3), (2.5, 3)):
        assert window_of(processor.feature_extractor, seconds) == window
        clips = [clip_of(seconds), clip_of(seconds / 2, 1)]
        features = extract_features(processor.feature_extractor, clips)
        assert features.shape[-1] == 100 * window
        heard = extract_features(whole, clips)[..., : 100 * window]
        torch.testing.assert_close(features, heard, rtol=0, atol=0)
        shorter, _ = load_model("embedded/student", window_seconds=window)
        ids, logits, said, found = torch.tensor([[1, 2, 3]] * 2), [], [], []
        with torch.no_grad():
            for model in (fitted.eval(), shorter.eval()):
                logits.append(model(input_features=features, decoder_input_ids=ids).logits)
                found.append(model.encode(features, ["ca"] * 2).last_hidden_state)
                out = model.generate(input_features=features, language="ca", max_new_tokens=5)
                said.append(out.tolist())
        torch.testing.assert_close(*logits, rtol=0, atol=0)
        torch.testing.assert_close(*found, rtol=0, atol=0)
        assert said[0] == said[1]
        assert found[0].shape[1] == 50 * window


def test_a_model_that_does_not_fit_refuses_short_features():
    model, processor = load_model("embedded/student")
    short = extract_features(processor.feature_extractor, [clip_of(1)])[..., :100]
    with pytest.raises(ValueError, match="to be of length 300"):
        model(input_features=short, decoder_input_ids=torch.tensor([[1]]))


def test_a_failed_pass_leaves_the_whole_window():
    model, processor = load_model("embedded/student", fit_window=True)
    short = extract_features(processor.feature_extractor, [clip_of(1)])
    with pytest.raises(IndexError):
        model(input_features=short, decoder_input_ids=torch.tensor([[10**6]]))
    assert model.config.max_source_positions == 150
    assert model.model.encoder.embed_positions.num_embeddings == 150


@pytest.mark.parametrize("method", ["full", "lora", "js"])
def test_a_run_whose_window_fits(method, configured):
    config = configured(method, **FIT)
    assert config.run_id != configured(method).run_id
    data = load_data(config)
    trained = train(config, data)
    record = record_run(trained, data, evaluate(trained, data))
    assert record["config"]["window"] == "fit"
    again, recorder = load_run(config.output_dir), []
    encoder = next(m for m in again.model.modules() if type(m).__name__ == "WhisperEncoder")
    encoder.register_forward_hook(lambda m, given, out: recorder.append(out[0].shape[:2]))
    table = data.in_domain
    said = transcribe(again.model, again.processor, table, max_new_tokens=9, progress=False)
    extractor = again.processor.feature_extractor
    windows = [window_of(extractor, seconds) for seconds in table["seconds"]]
    assert len(set(windows)) > 1
    heard = Counter()
    for clips, positions in recorder:
        heard[positions // 50] += clips
    assert heard == Counter(windows)
    one = table.head(1)
    alone = transcribe(again.model, again.processor, one, max_new_tokens=9, progress=False)
    assert alone[0]["hypothesis"] == said[0]["hypothesis"]


def test_a_teacher_hears_the_silence_that_the_student_is_spared():
    """Its targets are those of a run whose window does not fit."""
    rows = [{"id": "a", "audio": clip_of(0.9), "text": "un dos", "language": "ca"}]
    said = []
    for fit in (True, False):
        _, processor = load_model("embedded/student", fit_window=fit)
        batch = Collator(processor)(rows)
        assert batch["input_features"].shape[-1] == (200 if fit else 300)
        said.append(Teacher(load_model("embedded/teacher")[0]).targets(batch).states)
    torch.testing.assert_close(*said, rtol=0, atol=0)


def test_what_trains_nothing_hears_the_whole_window():
    for method in ("zero_shot", "teacher"):
        fitted, whole = resolve(method, overrides=FIT), resolve(method)
        assert (fitted.run_id, fitted.window) == (whole.run_id, "whole")


def test_an_expert_file_tells_that_its_window_fits(configured):
    config = configured("clsr", **FIT)
    train(config, load_data(config))
    path = config.output_dir / "expert.catalan.safetensors"
    assert read_metadata(path)["window"] == "fit"
    ready = Transcriber.load("student", experts=config.output_dir)
    ready.transcribe(clip_of(1.2), "catalan")
    assert ready.model.config.fit_window and ready.window == 3


def test_clips_of_like_length_come_together_and_none_is_lost():
    seconds = np.random.default_rng(0).gamma(3, 1.0, 203).tolist()
    plain = MicroBatches(RandomSampler(seconds, generator=torch.Generator().manual_seed(1)), 8, 1)
    alike = MicroBatches(
        RandomSampler(seconds, generator=torch.Generator().manual_seed(1)), 8, 1, seconds
    )
    before, after = list(plain), list(alike)
    assert sorted(sum(after, [])) == list(range(203))
    assert [len(b) for b in after] == [len(b) for b in before]
    assert after[-1] == before[-1]  # what is left over is chance's

    def work(batches):
        return sum(len(b) * max(seconds[i] for i in b) for b in batches)

    assert work(after) < 0.75 * work(before)
    shortest = [min(seconds[i] for i in b) for b in after[:-1]]
    assert shortest != sorted(shortest)


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="window_seconds=2 cuts clips of up to max_seconds=3:"):
        resolve("js", overrides={"window_seconds": 2})
    with pytest.raises(UserError, match="window_seconds=0 is out of range"):
        resolve("js", overrides={"window_seconds": 0})
    with pytest.raises(UserError, match="window_seconds=10 is longer than .* at once, 3 s"):
        load_model("embedded/student", window_seconds=10)
