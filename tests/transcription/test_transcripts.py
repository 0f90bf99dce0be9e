"""Transcripts as files: subtitles, JSON lines, text."""

from __future__ import annotations

import json

import pytest

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.transcription.transcripts import (
    Segment,
    Transcript,
    save_subtitles,
    save_transcripts,
)

TIMED = Transcript(
    "talks/day 1.mp3",
    "ca",
    3725.5,
    (Segment(0.0, 2.3456, "bon <dia> & --> hola"), Segment(3661.0, 3725.5, "fins demà")),
    "model",
)
FAILED = Transcript("talks/broken.wav", "ca", 0.0, (), error="cannot be read")


def test_srt_counts_from_one_and_writes_times_with_a_comma():
    assert TIMED.srt() == (
        "1\n00:00:00,000 --> 00:00:02,346\nbon <dia> & --> hola\n\n"
        "2\n01:01:01,000 --> 01:02:05,500\nfins demà\n"
    )


def test_vtt_escapes_text_and_says_when_the_times_are_those_of_windows():
    blocks = TIMED.vtt().split("\n\n")
    assert blocks[0] == "WEBVTT"
    assert blocks[1] == "00:00:00.000 --> 00:00:02.346\nbon &lt;dia&gt; &amp; --&gt; hola"
    windows = Transcript("a.wav", "ca", 3.0, (Segment(0.0, 3.0, "hola"),))
    assert windows.vtt().split("\n\n")[1].startswith("NOTE The times are those of the windows")


def test_one_file_of_each_format_and_what_becomes_of_failures(tmp_path):
    lines = save_transcripts([TIMED, FAILED], tmp_path / "new" / "all.jsonl").read_text("utf-8")
    first, second = map(json.loads, lines.splitlines())
    assert first["text"] == TIMED.text == "bon <dia> & --> hola fins demà"
    assert first["segments"][1] == {"start": 3661.0, "end": 3725.5, "text": "fins demà"}
    assert second["error"] == "cannot be read" and second["segments"] == []
    assert save_transcripts([TIMED, FAILED], tmp_path / "a.TXT").read_text() == TIMED.text + "\n"
    assert save_transcripts(TIMED, tmp_path / "a.srt").read_text() == TIMED.srt()
    assert str(FAILED) == "talks/broken.wav: cannot be read" and str(TIMED) == TIMED.text


def test_subtitles_of_a_folder_never_overwrite_each_other(tmp_path):
    other = Transcript("elsewhere/day 1.wav", "ca", 1.0, (Segment(0.0, 1.0, "altre"),))
    paths = save_subtitles([TIMED, FAILED, other], tmp_path, "vtt")
    assert [path.name for path in paths] == ["day 1.vtt", "day 1-2.vtt"]
    assert "altre" in paths[1].read_text()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: save_transcripts(TIMED, p / "a.docx"), "'.*a.docx' has no known ending"),
        (lambda p: save_transcripts([TIMED, TIMED], p / "a.srt"), "here are 2: give one"),
        (lambda p: save_transcripts(FAILED, p / "a.vtt"), "here are 0: give one"),
        (lambda p: save_subtitles([TIMED], p, "ass"), "subtitles in 'ass'"),
    ],
)
def test_wrong_wishes_are_named_and_nothing_is_written(tmp_path, call, message):
    with pytest.raises(UserError, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
