"""The kit's own log-mel: transformers' values at a fraction of the work."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.speech.audio import read_audio
from distilwhisper_lib.speech.features import Collator, extract_features
from distilwhisper_lib.speech.log_mel import log_mel

RATE = 16_000


def theirs(extractor, audio):
    return extractor(list(audio), sampling_rate=RATE, return_tensors="pt").input_features


def assert_equal(extractor, audio):
    ours = log_mel(extractor, audio)
    assert ours.dtype == torch.float32 and ours.device.type == "cpu"
    torch.testing.assert_close(ours, theirs(extractor, audio), atol=1e-5, rtol=0)


def signals(length):
    rng = np.random.default_rng(length)
    time = np.arange(length) / RATE
    yield "noise", rng.normal(0, 0.1, length)
    yield "faint", rng.normal(0, 1e-6, length)
    yield "silence", np.zeros(length)
    yield "full scale", np.sign(rng.normal(size=length))
    yield "tone", np.sin(2 * np.pi * 440 * time)
    yield "click at the end", np.eye(1, length, length - 1)[0]


@pytest.fixture(scope="module", params=[{}, {"feature_size": 128}, {"chunk_length": 3}], ids=str)
def extractor(request):
    return WhisperFeatureExtractor(**request.param)


# Around the half-frame at the start, the hop, and both sides of the window's end.
STARTS = (1, 2, 159, 160, 161, 199, 200, 201, 400, 401, 16_001)
ENDS = (-401, -400, -201, -200, -160, -41, -40, -39, -1, 0, 1, 20_000)


@pytest.mark.parametrize("length", STARTS)
def test_short_clips_equal_transformers(extractor, length):
    for _, samples in signals(length):
        assert_equal(extractor, [samples.astype(np.float32)])


@pytest.mark.parametrize("beyond", ENDS)
def test_clips_as_long_as_the_window_and_longer_equal_transformers(extractor, beyond):
    for _, samples in signals(extractor.n_samples + beyond):
        assert_equal(extractor, [samples.astype(np.float32)])


def test_a_batch_of_unequal_lengths_equals_its_clips(extractor):
    audio = [s.astype(np.float32) for n in (1, 5_000, 47_999, 70_000) for _, s in signals(n)]
    assert_equal(extractor, audio)


def test_real_speech_equals_transformers_with_the_demo_students_extractor(processor):
    folder = locate("embedded/speech")
    from distilwhisper_lib.data.corpora import read_folder

    rows = read_folder(folder, "ca", "test").head(20).to_dict("records")
    audio = [read_audio(row["audio"], row["start"], row["end"]) for row in rows]
    assert processor.feature_extractor.n_samples == 3 * RATE
    assert_equal(processor.feature_extractor, audio)


def test_float64_and_reversed_views_are_taken(processor):
    samples = np.random.default_rng(0).normal(0, 0.1, 9_000)
    assert_equal(processor.feature_extractor, [samples, samples.astype(np.float32)[::-1]])


def test_log_mel_stays_in_float32_under_autocast(processor):
    samples = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    row = {"id": "clip", "audio": samples, "text": "bon dia", "language": "ca"}
    expected = extract_features(processor.feature_extractor, [samples])
    with torch.autocast("cpu", torch.bfloat16):
        features = Collator(processor)([row])["input_features"]
    assert features.dtype == torch.float32
    assert torch.equal(features, expected)


def test_an_extractor_that_does_more_does_its_work_itself(monkeypatch):
    samples = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)

    class Louder(WhisperFeatureExtractor):
        def _torch_extract_fbank_features(self, waveform, device="cpu"):
            return super()._torch_extract_fbank_features(waveform, device) + 1

    plain = theirs(WhisperFeatureExtractor(), [samples])
    assert torch.equal(log_mel(Louder(), [samples]), plain + 1)
    torch.manual_seed(0)
    dithered = log_mel(WhisperFeatureExtractor(dither=1e-3), [samples])
    torch.manual_seed(0)
    assert torch.equal(dithered, theirs(WhisperFeatureExtractor(dither=1e-3), [samples]))
    left = WhisperFeatureExtractor(padding_side="left")
    assert torch.equal(log_mel(left, [samples]), theirs(left, [samples]))
    with pytest.raises(ValueError, match="sampling rate of 8000"):
        log_mel(WhisperFeatureExtractor(sampling_rate=8_000), [samples])


def test_a_short_clip_costs_a_fraction_of_the_padded_window():
    """Ten times here (see benchmarks/); half of transformers' time would be a broken promise."""
    extractor = WhisperFeatureExtractor()
    samples = np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32)
    seconds = {theirs: [], log_mel: []}
    for _ in range(7):
        for extract, times in seconds.items():
            begin = time.process_time()
            extract(extractor, [samples])
            times.append(time.process_time() - begin)
    assert np.median(seconds[log_mel]) < 0.5 * np.median(seconds[theirs])
