"""All that a file holds is heard, or an error says what is missing: by content, not by header."""

from __future__ import annotations

import builtins
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import audio, containers, ffmpeg, guarded
from distilwhisper_lib.speech.audio import (
    FFMPEG_READ,
    HALF_SILENT,
    JOINED,
    LOUDER,
    SAMPLE_RATE,
    UNTOLD,
    audio_seconds,
    listen,
    read_audio,
)

RECORDINGS = Path(__file__).parent / "recordings"
SPOKEN = 1.296  # seconds
FOREIGN = ("phone.m4a", "voice.3gp", "browser.webm")


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE, hertz: float = 220.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def encoded(samples: np.ndarray, kind: str, subtype: str | None = None, rate=SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


KINDS = [
    ("WAV", "PCM_16"), ("WAVEX", "PCM_24"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("RF64", "PCM_16"),
    ("W64", "PCM_16"), ("CAF", "PCM_16"), ("AU", "PCM_16"),
    ("NIST", "PCM_16"), ("NIST", "ULAW"),
]  # fmt: skip


# Joined end to end --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_joined_files_are_read_whole(tmp_path, kind, subtype, named):
    first, second, third = (
        encoded(tone(seconds, hertz=hertz), kind, subtype)
        for seconds, hertz in ((1.0, 220), (0.5, 440), (0.7, 330))
    )
    (path := tmp_path / "joined").write_bytes(first + second + third)
    source = path if named else path.read_bytes()
    heard = listen(source)
    assert heard.seconds == pytest.approx(2.2, abs=0.1) and heard.notes == (JOINED,)
    assert guarded.listen(source) == heard
    samples = read_audio(source)
    assert len(samples) / SAMPLE_RATE == pytest.approx(heard.seconds, abs=1e-3)
    alone = np.concatenate([read_audio(part) for part in (first, second, third)])
    np.testing.assert_allclose(samples, alone, atol=1e-7)
    np.testing.assert_allclose(read_audio(source, 0.5, 1.5), alone[8_000:24_000], atol=1e-7)


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_one_file_is_read_as_ever(kind, subtype):
    data = encoded(tone(2.0), kind, subtype)
    assert len(containers.streams(data, kind)) == 1
    heard = listen(data)
    assert heard.notes == () and not heard.silent
    decoded, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    # mpg123 rounds as its buffers happen to lie.
    np.testing.assert_allclose(read_audio(data), decoded, atol=1e-7 if kind == "MP3" else 0)


OGG = [("OGG", "VORBIS"), ("OGG", "OPUS")]


def pages(data):
    """Where the pages of an Ogg file begin."""
    places = [0]
    while places[-1] < len(data):
        places.append(containers._page(data, places[-1]).last)
    return places


@pytest.mark.parametrize(("kind", "subtype"), OGG)
def test_an_ogg_file_that_lost_bytes_is_refused_or_told(kind, subtype):
    """As copying that stopped, a bad disk and a player that seeks leave it."""
    data = encoded(
        tone(20.0) * np.random.default_rng(0).uniform(0.2, 1, 20 * 16_000), kind, subtype
    )
    starts, middle = pages(data), len(data) // 2
    assert len(starts) > 5
    for tail in (bytes(len(data) - middle), b"\xff" * (len(data) - middle)):
        with pytest.raises(UserError, match="is damaged|is cut short"):
            listen(data[:middle] + tail)
        with pytest.raises(UserError, match="is damaged or cut short: what stands at byte"):
            listen(data[: starts[3]] + tail)
    changed = bytearray(data)
    changed[middle : middle + 40] = bytes(255 - byte for byte in changed[middle : middle + 40])
    with pytest.raises(UserError, match="has another checksum than it says"):
        listen(bytes(changed))
    with pytest.raises(UserError, match="lacks the pages before byte"):
        listen(data[: starts[3]] + data[starts[4] :])
    assert UNTOLD in listen(data[: starts[3]]).notes  # cut between two pages
    assert listen(data + bytes(3000)).notes == ()  # what programs leave behind it


@pytest.mark.parametrize(
    ("kind", "other"),
    [("MP3", "WAV"), ("MP3", "OGG"), ("OGG", "MP3"), ("FLAC", "WAV"), ("OGG", "FLAC"),
     ("WAV", "FLAC"), ("FLAC", "MP3")],
)  # fmt: skip
def test_joined_files_of_two_kinds_are_refused(kind, other):
    data = encoded(tone(2.0), kind) + encoded(tone(2.0), other)
    with pytest.raises(UserError, match="split it|is damaged|bytes after the"):
        listen(data)


def test_a_flac_that_a_pipe_was_given_says_what_it_is():
    """Its header says 0 samples, which is "unknown", and libsndfile reads none of it."""
    data = bytearray(encoded(tone(2.0), "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    with pytest.raises(
        UserError, match="does not tell its length, as FLAC that was written to a p"
    ):
        listen(bytes(data))


def test_a_recording_that_is_mostly_silent_says_so():
    samples = np.concatenate([tone(1.0), np.zeros(32_000)])
    assert listen(encoded(samples, "FLAC")).notes == (HALF_SILENT,)
    assert listen(encoded(samples[:30_000], "FLAC")).notes == ()


def test_joined_recordings_of_two_rates_are_refused():
    data = encoded(tone(), "WAV") + encoded(tone(rate=8_000), "WAV", rate=8_000)
    told = "joins a recording of 16000 Hz and 1 channels with one of 8000 Hz and 1 channels: split"
    with pytest.raises(UserError, match=told):
        listen(data)


@pytest.mark.parametrize("kind", ["WAV", "W64", "OGG", "MP3"])
def test_a_joined_file_that_is_broken_is_refused_in_a_sentence(kind):
    data = encoded(tone(), kind)
    broken = {
        "WAV": data[:8] + b"WAVExxxx" + data[16:],
        "W64": data[:40] + bytes(16) + data[56:],
        "OGG": data[:30] + bytes(20) + data[50:],
        "MP3": b"ID3\x04\0\0\0\0\0\x05xxxxx" + data[:4] + bytes(len(data) - 4),
    }[kind]
    with pytest.raises(UserError, match=r"in memory (cannot be read|is cut short|is damaged)"):
        listen(data + broken)


@pytest.mark.parametrize(
    "tail", [b"LIST\x04\0\0\0INFO", b"\0" * 5000, b"id3 \x02\0\0\0xx" + b"\0" * 99]
)
def test_what_programs_write_after_the_sound_is_no_recording(tail):
    data = encoded(tone(), "WAV")
    heard = listen(data + tail)
    assert heard.seconds == 1.0 and heard.notes == ()


# MP3 ----------------------------------------------------------------------------------------


def test_an_mp3_without_a_length_header_is_read_to_its_end():
    path = RECORDINGS / "vbr_noxing.mp3"
    assert soundfile.info(path).duration < 0.6  # a guess from its first bit rate
    heard = listen(path)
    assert heard.seconds == pytest.approx(SPOKEN, abs=0.05) and heard.notes == (UNTOLD,)
    assert audio_seconds(path) == pytest.approx(heard.seconds)
    assert len(read_audio(path)) / SAMPLE_RATE == pytest.approx(heard.seconds, abs=1e-3)
    end = read_audio(path, 1.0)
    assert np.abs(end).max() > 0.05  # speech, not what a guess leaves out


def test_two_mp3_without_length_headers_are_read_whole():
    data = (RECORDINGS / "vbr_noxing.mp3").read_bytes()
    assert listen(data + data).seconds == pytest.approx(2 * SPOKEN, abs=0.1)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_mpeg_frames_are_counted_at_any_rate(rate, channels):
    samples = np.stack([tone(3.0, rate)] * channels, axis=1)
    data = encoded(samples, "MP3", rate=rate)
    (stream,) = containers.streams(data, "MP3")
    assert stream.told and 0 <= stream.frames - 3 * rate <= 4 * 1152
    tagged = b"ID3\x04\0\0\0\0\x02\0" + b"\xff\xfb\x90\0" * 64 + data + b"TAG" + bytes(125)
    (again,) = containers.streams(tagged, "MP3")
    assert again.frames == stream.frames


# Cut short ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "subtype"), KINDS)
def test_half_of_a_file_is_an_error(kind, subtype):
    data = encoded(tone(4.0) + np.random.default_rng(0).normal(0, 0.01, 64_000), kind, subtype)
    with pytest.raises(UserError, match=r"cut short|cannot be read"):
        listen(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["VOC", "SVX", "IRCAM", "MAT5", "HTK"])
def test_what_could_be_cut_unseen_is_refused_whole(kind):
    told = f"in memory is {kind} by its content, of which nobody would see .* to WAV or FLAC"
    with pytest.raises(UserError, match=told):
        listen(encoded(tone(2.0), kind, "PCM_16"))


@pytest.mark.parametrize("lacking", [2_000, 20_000, 200_000])
def test_a_wav_that_lacks_bytes_says_how_many(lacking):
    data = encoded(tone(10.0), "WAV")[:-lacking]
    there = 320_000 - lacking
    with pytest.raises(UserError, match=rf"cut short: {there} of 320000 bytes of sound are there"):
        listen(data)


def test_what_a_careless_program_miscounts_is_no_loss():
    assert listen(encoded(tone(10.0), "WAV")[:-500]).seconds == pytest.approx(10.0, abs=0.02)


def sized(seconds: float, size: int, after: bytes = b"") -> bytes:
    """A WAV whose header tells this size of its sound, whatever that is."""
    data = bytearray(encoded(tone(seconds) + 0.01, "WAV"))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    data[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    return bytes(data) + after


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_whose_size_was_never_filled_in_goes_to_its_end(tmp_path, size):
    data = sized(2.0, size)
    heard = listen(data)
    assert heard.seconds == 2.0 and heard.notes == (UNTOLD,)
    (path := tmp_path / "clip.wav").write_bytes(data)
    expected = read_audio(encoded(tone(2.0) + 0.01, "WAV"))
    assert np.array_equal(read_audio(path), expected)
    assert np.array_equal(read_audio(path, 1.0), expected[SAMPLE_RATE:])


def test_a_wav_that_holds_no_sound_but_something_else_is_no_recording():
    with pytest.raises(UserError, match="holds no samples"):
        listen(sized(0.0, 0, after=b"LIST" + struct.pack("<I", 4000) + b"INFO" + bytes(3996)))


@pytest.mark.parametrize("told", [4_096, 4_095, 32_000])
def test_sound_after_the_end_that_a_wav_tells_is_not_dropped_without_a_word(told):
    rest = 64_000 - told
    with pytest.raises(UserError, match=rf"memory has {rest} bytes after the {told} of sound that"):
        listen(sized(2.0, told))


def test_a_long_header_of_a_short_flac_is_found_when_decoded():
    data = encoded(np.random.default_rng(0).normal(0, 0.1, 160_000), "FLAC")
    with pytest.raises(UserError, match=r"cut short|cannot be read"):
        listen(data[: round(len(data) * 0.95)])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_what_a_mac_leaves_beside_a_recording_is_not_looked_at(tmp_path, kind):
    (path := tmp_path / f"a.{kind.lower()}").write_bytes(encoded(tone(2.0), kind))
    apple = struct.pack(">II16sH", 0x00051607, 0x00020000, b"Mac OS X".ljust(16), 2)
    for content in (b"", apple.ljust(4096, b"\0")):
        path.with_name(f"._{path.name}").write_bytes(content)
        assert guarded.listen(path).seconds == pytest.approx(2.0, abs=0.05)


def test_files_are_closed_again(tmp_path):
    (good := tmp_path / "a.wav").write_bytes(encoded(tone(), "WAV"))
    (bad := tmp_path / "b.wav").write_bytes(b"RIFF" + bytes(100))
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        read_audio(good)
        with pytest.raises(UserError):
            read_audio(bad)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 1


# Two channels -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_of_channels_that_cancel_out_the_louder_is_taken(tmp_path, kind):
    left = tone(3.0)
    soundfile.write(path := tmp_path / f"a.{kind}", np.stack([left, -0.9 * left], 1), SAMPLE_RATE)
    heard = listen(path)
    assert heard.notes == (LOUDER,) and not heard.silent
    np.testing.assert_allclose(read_audio(path), left, atol=1e-4)
    np.testing.assert_array_equal(read_audio(path, 1.0, 2.0), read_audio(path)[16_000:32_000])
    np.testing.assert_array_equal(guarded.read_audio(path), read_audio(path))


@pytest.mark.parametrize("right", [1.0, 0.5, 0.0, -0.5])
def test_other_channels_are_mixed_as_ever(tmp_path, right):
    left = tone()
    soundfile.write(path := tmp_path / "a.wav", np.stack([left, right * left], 1), SAMPLE_RATE)
    assert listen(path).notes == ()
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    np.testing.assert_array_equal(read_audio(path), samples.mean(axis=1))


@pytest.mark.parametrize("channels", [1, 2])
def test_silence_is_told(channels):
    assert listen(encoded(np.zeros((8_000, channels)), "WAV")).silent
    assert listen(encoded(np.full((8_000, channels), 5e-5), "WAV", "FLOAT")).silent
    assert not listen(encoded(np.full((8_000, channels), 5e-4), "WAV", "FLOAT")).silent


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_silences_within_a_recording_are_told(rate):
    speech = tone(1.0, rate)
    quiet = [np.zeros(int(seconds * rate)) for seconds in (0.52, 0.2, 1.5)]
    samples = np.concatenate([quiet[0], speech, quiet[1], speech, quiet[2]])
    heard = listen(encoded(samples[:, None], "WAV", rate=rate))
    assert not heard.silent
    begin, end = heard.silences  # a fifth of a second is a breath
    assert begin == pytest.approx((0, 0.52), abs=0.1)
    whole = len(samples) / rate
    assert end == pytest.approx((whole - 1.5, whole), abs=0.1)


# What phones and browsers record --------------------------------------------------------------

av = pytest.importorskip("av")


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", ["", ".mp3", ".wav"])
def test_phones_and_browsers_are_heard_whatever_the_file_is_called(tmp_path, name, suffix):
    (path := tmp_path / f"x{suffix}").write_bytes((RECORDINGS / name).read_bytes())
    heard = guarded.listen(path)
    assert heard.seconds == pytest.approx(SPOKEN, abs=0.06) and heard.notes == (FFMPEG_READ,)
    assert abs(guarded.header_seconds(path) - heard.seconds) < 0.1
    samples = guarded.read_audio(path)
    assert len(samples) / SAMPLE_RATE == pytest.approx(heard.seconds, abs=1e-3)
    np.testing.assert_array_equal(read_audio(path.read_bytes()), samples)
    # The same words: the loudest tenth of a second falls where it does in another encoding.
    mp3 = read_audio(RECORDINGS / "vbr_noxing.mp3")
    assert abs(int(loudness(samples).argmax()) - int(loudness(mp3).argmax())) <= 1


def loudness(samples: np.ndarray) -> np.ndarray:
    return np.square(samples[: len(samples) // 1600 * 1600].reshape(-1, 1600)).sum(1)


@pytest.mark.parametrize("name", FOREIGN)
def test_more_than_a_container_promised_is_capped_while_it_is_decoded(monkeypatch, name):
    monkeypatch.setattr(audio, "MAX_SECONDS", 0.5)  # of decoding; headers have their own
    with pytest.raises(UserError, match=r"is longer than 0\.5 s: split it\.$"):
        listen(RECORDINGS / name)


@pytest.mark.parametrize("name", FOREIGN)
def test_without_pyav_the_sentence_names_content_and_extra(monkeypatch, name):
    real = builtins.__import__

    def without(module, *rest, **named):
        if module == "av":
            raise ImportError
        return real(module, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"is (MPEG-4|WebM).* by its content.*'\.\[recordings\]'"):
        listen(RECORDINGS / name)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_part_of_such_a_file_is_an_error_or_is_read_to_the_end_that_it_tells(name, share):
    data = (RECORDINGS / name).read_bytes()
    with pytest.raises(UserError, match="cut short"):
        listen(data[: round(len(data) * share)])


def test_a_phones_recording_that_was_spoilt_on_the_way_is_to_be_copied_again():
    data = bytearray((RECORDINGS / "phone.m4a").read_bytes())
    middle = slice(len(data) // 2, len(data) // 2 + 400)
    data[middle] = bytes((7 * byte + 13) % 256 for byte in data[middle])
    with pytest.raises(UserError, match=r"is damaged or cut short \(Invalid data.*\): copy or"):
        listen(bytes(data))


@pytest.mark.parametrize("name", ["phone.m4a", "voice.3gp"])
def test_joined_recordings_of_which_ffmpeg_would_play_the_first_are_refused(name):
    data = (RECORDINGS / name).read_bytes()
    with pytest.raises(UserError, match="is 3 files of MPEG-4 .* joined end to end.*: split it"):
        listen(data * 3)


@pytest.mark.parametrize("tail", [b"\0" * 500, b"TAGsome title" + bytes(115), b"xyz"])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_tail_of_such_a_file_is_no_recording(name, tail):
    data = (RECORDINGS / name).read_bytes()
    assert listen(data + tail).seconds == listen(data).seconds


@pytest.mark.parametrize("kind", ["FLAC", "amr", "asf"])
def test_files_that_begin_with_a_mark_are_counted(kind):
    data = containers._MARKS[kind] + bytes(100)
    assert [s[:2] for s in containers.streams(2 * data, kind)] == [
        (0, len(data)),
        (len(data), 2 * len(data)),
    ]
    assert len(containers.streams(data, kind)) == 1


@pytest.mark.parametrize(
    "text",
    [
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 96\n",
        b"<?xml version='1.0'?><MPD></MPD>",
    ],
)
def test_lists_that_name_other_files_are_never_opened(text):
    assert ffmpeg.kind_of(text) is None
    with pytest.raises(UserError, match="cannot be read"):
        listen(text)


def test_an_aac_file_is_as_long_as_it_decodes_and_tells_no_length():
    """FFmpeg guesses it from the first frames' bit rate."""
    buffer = io.BytesIO()
    sound = np.concatenate([tone(1.0), 0.001 * tone(4.0)]).astype(np.float32)
    with av.open(buffer, "w", format="adts") as file:
        stream = file.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    heard = listen(data := buffer.getvalue())
    assert heard.seconds == pytest.approx(5.0, abs=0.2)
    assert audio.header_of(data).seconds == pytest.approx(heard.seconds, abs=0.01)
    assert heard.notes == (FFMPEG_READ, UNTOLD)


def test_a_film_gives_its_sound_and_one_without_sound_says_so(tmp_path):
    for name, with_sound in (("a.mp4", True), ("b.mp4", False)):
        with av.open(str(tmp_path / name), "w") as film:
            picture = film.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 32
            sound = film.add_stream("aac", rate=SAMPLE_RATE) if with_sound else None
            for _ in range(50):
                frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
                film.mux(picture.encode(frame))
            film.mux(picture.encode(None))
            if sound:
                samples = tone(2.0)[None].astype(np.float32)
                frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
                frame.sample_rate = SAMPLE_RATE
                film.mux(sound.encode(frame))
                film.mux(sound.encode(None))
    assert listen(tmp_path / "a.mp4").seconds == pytest.approx(2.0, abs=0.15)
    with pytest.raises(UserError, match=r"b\.mp4 cannot be read \(it holds no sound\)"):
        listen(tmp_path / "b.mp4")


def test_the_child_loads_pyav_only_for_what_needs_it():
    program = (
        "import sys; from distilwhisper_lib.speech.audio import listen; listen(sys.argv[1]);"
        "print('av' in sys.modules)"
    )
    for name, loaded in (("vbr_noxing.mp3", "False"), ("phone.m4a", "True")):
        run = [sys.executable, "-c", program, str(RECORDINGS / name)]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert said.strip() == loaded
