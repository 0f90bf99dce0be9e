"""What a recording was heard to say, and the files that people keep of it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic

# Where the times of segments come from, see Transcript.timed_by.
MODEL, WINDOWS = "model", "windows"
FORMATS = ("jsonl", "txt", "srt", "vtt")
SUBTITLES = ("srt", "vtt")
_NOTE = (
    "The times are those of the windows that were decoded, not of the words: the transcript was "
    "made without timestamps."
)


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording in seconds, and what was said in it."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """One recording: where it came from, what was heard, or why nothing was.

    ``timed_by`` says what the segments' times are worth: "model" where Whisper predicted
    timestamps, "windows" where they are only the bounds of the windows that were decoded one by
    one. ``error`` is the reason why a recording of a folder could not be transcribed; there is no
    text then.
    """

    source: str
    language: str | None  # Whisper code
    seconds: float
    segments: tuple[Segment, ...]
    timed_by: str = WINDOWS
    error: str | None = None

    @property
    def text(self) -> str:
        """All of it, on one line."""
        return " ".join(segment.text for segment in self.segments)

    def __str__(self) -> str:
        return self.text if self.error is None else f"{self.source}: {self.error}"

    def to_dict(self) -> dict[str, Any]:
        """As a line of JSONL holds it."""
        return asdict(self) | {"segments": [asdict(s) for s in self.segments], "text": self.text}

    def srt(self) -> str:
        """SubRip subtitles; the format has no room for the note on what the times are worth."""
        cues = [
            f"{number}\n{_clock(s.start, ',')} --> {_clock(s.end, ',')}\n{s.text}\n"
            for number, s in enumerate(self.segments, start=1)
        ]
        return "\n".join(cues)

    def vtt(self) -> str:
        """WebVTT subtitles, with a note where the times are those of windows."""
        blocks = ["WEBVTT\n"]
        if self.timed_by == WINDOWS:
            blocks.append(f"NOTE {_NOTE}\n")
        blocks += [
            f"{_clock(s.start, '.')} --> {_clock(s.end, '.')}\n{html.escape(s.text, quote=False)}\n"
            for s in self.segments
        ]
        return "\n".join(blocks)


def json_line(transcript: Transcript) -> str:
    """One line of JSONL, with its line feed."""
    return json.dumps(transcript.to_dict(), ensure_ascii=False, sort_keys=True) + "\n"


def save_transcripts(transcripts: Transcript | Sequence[Transcript], path: str | Path) -> Path:
    """Write one file, its format by the suffix: .jsonl, .txt, .srt or .vtt; returns the path.

    JSONL and text take any number of transcripts; a subtitle file belongs to one recording, see
    save_subtitles() for several. Text leaves failed recordings out, JSONL says their reason.
    """
    several = [transcripts] if isinstance(transcripts, Transcript) else list(transcripts)
    path = Path(path)
    good = [t for t in several if t.error is None]
    form = form_of(path, len(several) if good else 0)
    if form == "jsonl":
        return write_atomic(path, "".join(map(json_line, several)))
    if form == "txt":
        return write_atomic(path, "".join(f"{t.text}\n" for t in good))
    return write_atomic(path, getattr(good[0], form)())


def form_of(path: Path, recordings: int) -> str:
    """The format that a file's ending asks for; UserError where it cannot hold the recordings."""
    form = path.suffix.lower().removeprefix(".")
    if form not in FORMATS:
        raise UserError(
            f"{str(path)!r} has no known ending: expected one of .{', .'.join(FORMATS)}"
        )
    if form in SUBTITLES and recordings != 1:
        raise UserError(
            f"{path.name} is a subtitle file of one recording, and here are {recordings}: give "
            "one, or a folder for a file each"
        )
    return form


def save_subtitles(
    transcripts: Iterable[Transcript], folder: str | Path, form: str = "srt"
) -> list[Path]:
    """Write ``<folder>/<name of the recording>.<form>`` for each; returns the paths.

    Failed recordings get none. Where two recordings of different folders have one name, the
    second gets a number.
    """
    if form not in SUBTITLES:
        raise UserError(f"subtitles in {form!r}: expected one of {', '.join(SUBTITLES)}")
    written: list[Path] = []
    for transcript in (t for t in transcripts if t.error is None):
        stem, number = Path(transcript.source).stem, 2
        path = Path(folder) / f"{stem}.{form}"
        while path in written:
            path = Path(folder) / f"{stem}-{number}.{form}"
            number += 1
        written.append(write_atomic(path, getattr(transcript, form)()))
    return written


def _clock(seconds: float, mark: str) -> str:
    """00:00:00,000, as subtitle files write a time."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{mark}" + (
        f"{milliseconds % 1000:03}"
    )
