"""Audio comes out as 16 kHz mono float32, or with an error that names the file."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest
import soundfile

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import audio, headers
from distilwhisper_lib.speech.audio import (
    SAMPLE_RATE,
    audio_seconds,
    check_segment,
    decoded_seconds,
    read_audio,
)


def tone(seconds: float, rate: int = SAMPLE_RATE, hertz: float = 440) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype("f4")


def peak_hertz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch):
    monkeypatch.setattr(audio, "CACHE", audio.DecodedFiles())


@pytest.fixture(scope="module")
def long_opus(tmp_path_factory):
    """Forty seconds of noise and a sweep: no two places are alike."""
    path = tmp_path_factory.mktemp("audio") / "long.ogg"
    time_axis = np.arange(40 * SAMPLE_RATE) / SAMPLE_RATE
    noise = np.random.default_rng(0).standard_normal(time_axis.size) * 0.02
    samples = 0.3 * np.sin(2 * np.pi * (200 + 20 * time_axis) * time_axis) + noise
    soundfile.write(path, samples, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2), (8_000, 1)])
def test_every_format_rate_and_channel_count(tmp_path, suffix, rate, channels):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([tone(1.0, rate)] * channels, axis=1), rate)
    samples = read_audio(path)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert len(samples) == pytest.approx(SAMPLE_RATE, rel=0.1)  # MP3 pads
    assert peak_hertz(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[4000:12000]).max() == pytest.approx(0.4, abs=0.03)
    assert audio_seconds(path) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("suffix", "kind", "subtype"),
    [
        ("wav", "WAV", "PCM_16"),
        ("flac", "FLAC", None),
        ("mp3", "MP3", None),
        ("ogg", "OGG", "VORBIS"),
        ("opus", "OGG", "OPUS"),
    ],
)
def test_bytes_give_the_samples_of_the_file(tmp_path, suffix, kind, subtype):
    path = tmp_path / f"a.{suffix}"
    stereo = np.stack([tone(2.0, 48_000)] * 2, axis=1)
    soundfile.write(path, stereo, 48_000, format=kind, subtype=subtype)
    samples = read_audio(path.read_bytes())
    np.testing.assert_array_equal(samples, read_audio(path))
    assert peak_hertz(samples) == pytest.approx(440, abs=2)
    assert len(samples) == pytest.approx(2 * SAMPLE_RATE, rel=0.05)
    segment = read_audio(path.read_bytes(), 0.5, 1.0)
    np.testing.assert_array_equal(segment, samples[8_000:16_000])
    assert decoded_seconds(path) == decoded_seconds(path.read_bytes())
    for given in (bytearray(path.read_bytes()), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(read_audio(given, 0.5, 1.0), segment)
        assert decoded_seconds(given) == decoded_seconds(path)
    assert decoded_seconds(path) == pytest.approx(2.0, rel=0.05)


def test_a_wrong_suffix_does_not_matter(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(1.0), SAMPLE_RATE)
    (tmp_path / "a.flac").rename(tmp_path / "a.mp3")
    np.testing.assert_allclose(read_audio(tmp_path / "a.mp3"), tone(1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"file of 0 bytes in memory is empty"),
        (
            b"no audio" * 9,
            r"of 72 bytes in memory cannot be read: it is a text, which begins 'no au",
        ),
        (b"no \xff\x00audio" * 9, r"file of 90 bytes in memory cannot be read \(.+\): convert"),
    ],
)
def test_bytes_that_are_no_audio(data, message):
    for read in (read_audio, decoded_seconds):
        with pytest.raises(UserError, match=message):
            read(data)


def test_bytes_are_capped_too(monkeypatch, tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(1.0), SAMPLE_RATE)
    data = (tmp_path / "a.wav").read_bytes()
    monkeypatch.setattr(headers, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000"):
        read_audio(data)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"Segment 2 to 3 s is not inside audio file of \d+ bytes"):
        read_audio(data, 2, 3)


def test_decoding_finds_what_the_header_hides(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, np.random.default_rng(5).uniform(-1, 1, 160_000), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert audio_seconds(path) == 10
    with pytest.raises(UserError, match="is cut short"):
        decoded_seconds(path)


def test_16_khz_mono_is_read_bit_for_bit(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.5), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(str(tmp_path / "a.wav")), tone(0.5))


def test_stereo_is_the_mean_of_both_channels(tmp_path):
    left, right = tone(0.5, hertz=300), tone(0.5, hertz=700)
    stereo = np.stack([left, right], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


def test_decoding_in_blocks_is_decoding_at_once(tmp_path, monkeypatch):
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 44_100).astype("f4")
    soundfile.write(tmp_path / "a.wav", noise, 44_100, subtype="FLOAT")
    at_once = read_audio(tmp_path / "a.wav")
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 1000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), at_once, atol=1e-6)


def test_segments_of_a_long_opus_are_slices_of_the_whole(long_opus):
    whole = read_audio(long_opus)
    draw = np.random.default_rng(2)
    for start in draw.uniform(0, 38, 25).round(3):
        first = round(start * SAMPLE_RATE)
        segment = read_audio(long_opus, start, start + 1.5)
        np.testing.assert_array_equal(segment, whole[first : first + 24_000])
    np.testing.assert_array_equal(read_audio(long_opus, end=2.0), whole[:32_000])
    np.testing.assert_array_equal(read_audio(long_opus, start=38.0), whole[38 * SAMPLE_RATE :])
    np.testing.assert_array_equal(read_audio(long_opus, math.nan, math.nan), whole)


def test_segments_of_a_long_opus_decode_it_once(long_opus, monkeypatch):
    decoded = []
    decode = audio.decode
    monkeypatch.setattr(audio, "decode", lambda *args: decoded.append(args) or decode(*args))
    read_audio(long_opus, 0, 1)
    began = time.perf_counter()
    for start in range(39):
        read_audio(long_opus, start, start + 1)
    assert len(decoded) == 1
    assert time.perf_counter() - began < 0.5  # measured: 39 segments in 1 ms


def test_a_changed_segment_leaves_the_cache_alone(long_opus):
    segment = read_audio(long_opus, 1, 2)
    expected = segment.copy()
    segment[:] = 0
    np.testing.assert_array_equal(read_audio(long_opus, 1, 2), expected)


def test_a_changed_file_is_decoded_anew(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1.0, 8000), 8000)
    assert np.abs(read_audio(path, 0, 0.5)).max() > 0.3
    soundfile.write(path, np.zeros(16_000), 8000)
    assert np.abs(read_audio(path, 0, 0.5)).max() == 0


def test_the_cache_forgets_the_oldest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "CACHE_BYTES", 3 * SAMPLE_RATE * 4)
    for name in "abcd":
        soundfile.write(tmp_path / f"{name}.wav", tone(1.0, 8000), 8000)
        read_audio(tmp_path / f"{name}.wav", 0, 0.5)
    assert audio.CACHE.get(tmp_path / "a.wav") is None
    assert len(audio.CACHE.get(tmp_path / "d.wav")) == SAMPLE_RATE


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_exactly_seekable_files_are_read_in_place(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(3).uniform(-1, 1, 48_000), SAMPLE_RATE)
    np.testing.assert_array_equal(read_audio(path, 0.7, 1.9), read_audio(path)[11_200:30_400])
    assert audio.CACHE.get(path) is None


def test_a_rounded_end_is_still_inside(long_opus):
    whole = read_audio(long_opus)
    np.testing.assert_array_equal(read_audio(long_opus, 39, 40.01), whole[39 * SAMPLE_RATE :])


@pytest.mark.parametrize(
    ("start", "end"),
    [(39, 41), (50, 51), (-1, 1), (2, 1), (1, 1), (40, None), (0, math.inf), (None, 0.0)],
)
def test_a_segment_outside_the_file(long_opus, tmp_path, start, end):
    soundfile.write(tmp_path / "a.wav", tone(40.0), SAMPLE_RATE)
    for path in (long_opus, tmp_path / "a.wav"):
        with pytest.raises(UserError, match=r"Segment .* is not inside .*40\.000 s long") as error:
            read_audio(path, start, end)
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match="is not inside"):
        check_segment(long_opus, start, end, 40.0)


def test_missing_file_and_folder(tmp_path):
    for start in (None, 0.0):
        with pytest.raises(UserError, match=r"nowhere\.wav does not exist"):
            read_audio(tmp_path / "nowhere.wav", start)
    with pytest.raises(UserError, match="not a regular file"):
        read_audio(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "ogg", "mp3", "flac"])
def test_zero_bytes_and_random_bytes(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"a\.{suffix} is empty \(0 bytes\)"):
        read_audio(path)
    path.write_bytes(np.random.default_rng(4).bytes(5000))
    for read in (read_audio, audio_seconds):
        with pytest.raises(UserError, match=rf"a\.{suffix} cannot be read \(.+\): convert"):
            read(path)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("flac", r"is damaged or cut short \(.+\): copy or download it again"),
        ("mp3", r"is cut short: \d+ of \d+ frames"),
    ],
)
def test_half_a_file_is_not_filled_up(tmp_path, suffix, message):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.random.default_rng(5).uniform(-1, 1, 160_000), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert audio_seconds(path) == 10  # the header still promises all of it
    with pytest.raises(UserError, match=rf"a\.{suffix} {message}"):
        read_audio(path)


def test_no_samples_and_no_numbers(tmp_path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE)
    with pytest.raises(UserError, match=r"none\.wav holds no samples"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan\.wav holds NaN"):
        read_audio(tmp_path / "nan.wav")


@pytest.mark.parametrize(
    ("cap", "value", "message"),
    [
        ("MAX_BYTES", 1000, "bytes, more than 1000"),
        ("MAX_SECONDS", 0.5, "1 s long, more than 0.5"),
        ("MAX_CHANNELS", 1, "has 2 channels, expected 1 to 1"),
        ("MIN_RATE", 16_000, "a sample rate of 8000 Hz"),
    ],
)
def test_caps_hold_before_anything_is_decoded(tmp_path, monkeypatch, cap, value, message):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([tone(1.0, 8000)] * 2, axis=1), 8000)
    read_audio(path)
    monkeypatch.setattr(headers, cap, value)
    monkeypatch.setattr(audio, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=message) as error:
        read_audio(path)
    assert str(path) in str(error.value)


def test_samples_without_a_header_and_a_name_that_is_too_long(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"\0" * 3200)
    told = r"x\.raw cannot be read \(Format not recognised\): convert it"
    for read in (read_audio, audio_seconds, decoded_seconds):
        with pytest.raises(UserError, match=told):
            read(tmp_path / "x.raw")
        with pytest.raises(UserError, match=r"aaa\.wav does not exist"):
            read(tmp_path / f"{'a' * 300}.wav")


def test_decoding_keeps_no_more_than_its_result(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(24 * 2**20, "i2"), 192_000)
    blocks = 24 * 2**20 * 4  # bytes of all of them at once
    for read, result in ((decoded_seconds, 0), (read_audio, blocks / 12)):
        tracemalloc.start()
        read(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result + blocks / 3


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 44_100, 48_000, 192_000, 384_000])
def test_every_length_comes_out_whole(tmp_path, rate, monkeypatch):
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 1000)
    draw = np.random.default_rng(6)
    for frames in [1, 2, 3, 999, 1000, 1001, *draw.integers(1, 30_000, 20)]:
        soundfile.write(tmp_path / "a.wav", draw.uniform(-1, 1, frames), rate)
        length = len(read_audio(tmp_path / "a.wav"))
        assert length == pytest.approx(frames * SAMPLE_RATE / rate, abs=1)
