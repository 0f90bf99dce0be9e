"""Own recordings as people bring them: clips of the embedded demo's speech, in them some of every
nuisance, each with what is right to tell of it, and every fault that stops a reading."""

from __future__ import annotations

import csv
import io
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.robustness.fuzz_targets import encode
from distilwhisper_lib import data as kit
from distilwhisper_lib.data import clips
from distilwhisper_lib.data.subsets import HURRIED
from distilwhisper_lib.scoring import text as texts
from distilwhisper_lib.speech import audio

COLUMNS = ("file_name", "text", "language", "split")
# Part -> its corpus and split, and how many of 20 clips.
PARTS = {
    "train": ("speech", "train", 12),
    "validation": ("speech", "validation", 3),
    "in_domain": ("speech", "test", 3),
    "out_of_domain": ("speech_ood", "test", 2),
}
KEPT, UNREAD = "kept", "not read"

Make = Callable[[np.ndarray], bytes]


def sound(form: str, samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, audio.SAMPLE_RATE, format=form)
    return buffer.getvalue()


def _ffmpeg(container: str, codec: str, **options: str) -> Make:
    return lambda samples: encode(container, codec, samples, audio.SAMPLE_RATE, options)


_WAV, _FLAC, _MP3, _OGG = (partial(sound, form) for form in ("wav", "flac", "mp3", "ogg"))
_M4A, _3GP, _WEBM = _ffmpeg("mp4", "aac"), _ffmpeg("3gp", "aac"), _ffmpeg("webm", "libopus")
_NO_LENGTH = _ffmpeg("mp3", "libmp3lame", write_xing="0")
_NFD = partial(unicodedata.normalize, "NFD")
_PROMPT = "<|startoftranscript|><|ca|><|transcribe|><|notimestamps|>"
_TOKENS, _FORM, _SPACES, _INVISIBLE = (
    f"changed: {what}" for what in (texts.TOKENS, texts.FORM, texts.SPACES, texts.INVISIBLE)
)
_FFMPEG, _JOINED, _LOUDER, _UNTOLD = (
    f"noted: {note}" for note in (audio.FFMPEG_READ, audio.JOINED, audio.LOUDER, audio.UNTOLD)
)
_LOST, _MARKS, _BRACKETED, _HURRIED = (
    f"noted: {note}" for note in (texts.LOST, texts.MARKS, texts.BRACKETED, HURRIED)
)
_NOTE, _EMPTY, _LABEL, _SILENT, _LONG = (
    f"left out: {reason}"
    for reason in (clips.NOTE, clips.NO_TEXT, clips.LABEL_TOO_LONG, clips.SILENT, clips.TOO_LONG)
)
# Kind -> the text that is right, the one in the sheet ({}: the clip's own), what is told of it.
TEXTS = {
    "text in NFD": ("{} però", _NFD("{} però"), _FORM),
    "text with end token": ("{}", "{}<|endoftext|>", _TOKENS),
    "text with copied prompt": ("{}", _PROMPT + " {}<|endoftext|>", _TOKENS),
    "text with timestamps": ("{}", "<|0.00|> {}<|1.20|>", _TOKENS),
    "text with line break": ("{} sí", "{}\nsí", _SPACES),
    "text with tab": ("{} sí", "{}\tsí", _SPACES),
    "text with no-break space": ("{} sí", "{}\N{NO-BREAK SPACE}sí", _SPACES),
    "text with zero width": ("{} sí", "{} s\N{ZERO WIDTH SPACE}í", _INVISIBLE),
    "text with separators": ('diu "{}"; sí, va', 'diu "{}"; sí, va', ""),
    "text with a note in it": ("[rialles] {}", "[rialles] {}", _BRACKETED),
    "text is [música]": ("", "[música]", _NOTE),
    "text is (rialles)": ("", "(rialles)", _NOTE),
    "text is <|nospeech|>": ("", "<|nospeech|>", _EMPTY),
    "text with lost letters": ("{} s\ufffd", "{} s\ufffd", _LOST),
    "text with another program's marks": ("{} <unk>", "{} <unk>", _MARKS),
    "text too long for its sound": ("{0} {0} {0} {0}", "{0} {0} {0} {0}", _HURRIED),
    "text too long to learn": ("", 50 * "{0} ", _LABEL),
}
# Kind -> the file's name and the one in the sheet; {} is the clip's number.
NAMES = {
    "file name in NFD": (_NFD("veuà{}.wav"), "veuà{}.wav"),
    "sheet's name in NFD": ("veué{}.wav", _NFD("veué{}.wav")),
    "name in another case": ("Clip{}.WAV", "clip{}.wav"),
    "backslashes": ("clips/{}.wav", "clips\\{}.wav"),
}
# Kind -> suffix, what makes the file, how many of it end to end, what is told of it.
SOUNDS = {
    "m4a": ("m4a", _M4A, 1, _FFMPEG),
    "3gp": ("3gp", _3GP, 1, _FFMPEG),
    "webm": ("webm", _WEBM, 1, _FFMPEG),
    "m4a named mp3": ("mp3", _M4A, 1, _FFMPEG),
    "webm named wav": ("wav", _WEBM, 1, _FFMPEG),
    "wav named mp3": ("mp3", _WAV, 1, ""),
    "mp3": ("mp3", _MP3, 1, ""),
    "mp3 without a length": ("mp3", _NO_LENGTH, 1, _UNTOLD),
    "joined mp3": ("mp3", _MP3, 2, _JOINED),
    "chained ogg": ("ogg", _OGG, 2, _JOINED),
    "joined wav": ("wav", _WAV, 2, _JOINED),
    "joined flac": ("flac", _FLAC, 2, _JOINED),
    "channels cancel out": ("flac", lambda s: _FLAC(np.stack([s, -s], axis=1)), 1, _LOUDER),
    "silence": ("wav", lambda s: _WAV(0 * s), 1, _SILENT),
    "longer than the window": ("wav", lambda s: _WAV(np.resize(s, 60_000)), 1, _LONG),
}
# Kind -> the part that it fits (None: any), a column and what stands there.
FIELDS = {
    **{f"split {w!r}": ("train", "split", w) for w in ("Train", "TRAINING")},
    **{f"split {w!r}": ("validation", "split", w) for w in ("Dev", "valid")},
    **{f"split {w!r}": ("in_domain", "split", w) for w in ("TEST", " test ")},
    **{f"language {w!r}": (None, "language", w) for w in ("ca-ES", "cat", "Catalan")},
    "language 'es'": ("train", "language", "es"),
    "split not asked for": ("out_of_domain", "split", "train"),
}
_UNREAD = {"language 'es'", "split not asked for"}  # by a run in Catalan
# Kind -> what is told of a clip and of another one that it has something in common with.
PAIRS = {
    "same name, two folders": "",
    "text of training in test": "also in in_domain, train",
    "one recording, two names": "the same recording twice",
}
KINDS = (*TEXTS, *NAMES, *SOUNDS, *FIELDS, *PAIRS)
_ONLY = {
    "text too long to learn": "train",
    "text too long for its sound": "validation",
    "text of training in test": "in_domain",
    "same name, two folders": "train",
}
# What stops a reading: a change of what stands in the sheet or the file; the second is a sound row.
FAULTS: dict[str, Callable[[Row, Row], None]] = {
    "split that means nothing": lambda row, _: row.sheet.update(split="prova"),
    "language that is none": lambda row, _: row.sheet.update(language="xx"),
    "no text": lambda row, _: row.sheet.update(text=" "),
    "text of dots": lambda row, _: row.sheet.update(text="..."),
    "a field too many": lambda row, _: row.sheet.update(more="sí"),
    "another suffix": lambda row, _: row.sheet.update(file_name=f"{row.id}.flac"),
    "the same row twice": lambda row, other: row.sheet.update(file_name=other.file),
    "no row": lambda row, _: row.sheet.clear(),
    "missing file": lambda row, _: row.holds(None),
    "empty file": lambda row, _: row.holds(b""),
    "no sound": lambda row, _: row.holds(99 * b"no sound"),
    "joined m4a": lambda row, _: row.holds(2 * _M4A(row.samples), "m4a"),
    **{
        f"{form} cut short": lambda row, _, form=form, make=make: row.cut(form, make)
        for form, make in {
            "wav": _WAV,
            "flac": _FLAC,
            "mp3": _MP3,
            "ogg": _OGG,
            "m4a": _M4A,
        }.items()
    },
}


@dataclass(eq=False)
class Row:
    """A clip as it is right to read it, the sheet's fields and the file that stand for it."""

    part: str
    id: str
    samples: np.ndarray  # (samples,) at 16 kHz
    text: str
    kind: str = "as recorded"
    told: set[str] = field(default_factory=lambda: {KEPT})
    sheet: dict[str, str] = field(default_factory=dict)
    line: int = 0  # of the sheet

    def __post_init__(self) -> None:
        self.corpus, split, _ = PARTS[self.part]
        self.seconds = len(self.samples) / audio.SAMPLE_RATE
        self.holds(_WAV(self.samples))
        self.sheet |= {"text": self.text, "language": "ca", "split": split}

    def holds(self, data: bytes | None, form: str = "wav") -> None:
        """What its file holds; None where there is no file."""
        self.file, self.data = f"{self.id}.{form}", data
        self.sheet = {"file_name": self.file} | self.sheet | {"file_name": self.file}

    def cut(self, form: str, make: Make) -> None:
        data = make(self.samples)
        self.holds(data[: len(data) // 2], form)


def corpus_of(count: int, seed: int) -> list[Row]:
    """`count` clips, two in three of them with a nuisance, and one for each fault."""
    draw = random.Random(seed)
    rows = [row for part in PARTS for row in _clips(part, count * PARTS[part][2] // 20, draw)]
    rows += _clips("train", len(FAULTS), draw, "fault")
    faulty, plain = rows[-len(FAULTS) :], rows[: -len(FAULTS)]
    draw.shuffle(plain)
    many = max(1, 2 * count // (3 * len(KINDS)))
    parts = {kind: part for kind, (part, *_) in FIELDS.items()} | _ONLY
    for kind in sorted(KINDS, key=lambda kind: parts.get(kind) is None) * many:
        row = _take(plain, parts.get(kind))
        row.kind = kind
        _change(row, kind, lambda: _take(plain, "train"))
    for row, (kind, change) in zip(faulty, FAULTS.items(), strict=True):
        row.kind = kind
        change(row, plain[0])
    return rows


def _clips(part: str, count: int, draw: random.Random, name: str = "c") -> Iterator[Row]:
    """Clips of a part, of half the window at most and each with a text of its own."""
    corpus, split, _ = PARTS[part]
    table = kit.open_corpus(f"folder/{corpus}", "ca", split, "embedded").table
    table = table[table["seconds"] < 1.45].sample(count, random_state=draw.randrange(2**32))
    for number, clip in enumerate(table.itertuples()):
        samples = audio.read_audio(clip.audio, clip.start, clip.end)
        yield Row(part, f"{name}{part[:2]}{number:04}", samples, clip.text)


def _take(plain: list[Row], part: str | None) -> Row:
    return plain.pop(next(n for n, row in enumerate(plain) if part in (None, row.part)))


def _change(row: Row, kind: str, another: Callable[[], Row]) -> None:
    told = ""
    if kind in TEXTS:
        right, written, told = TEXTS[kind]
        row.sheet["text"], row.text = written.format(row.text), right.format(row.text)
    elif kind in NAMES:
        row.file, name = (name.format(row.id) for name in NAMES[kind])
        row.sheet["file_name"] = name
        row.id = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")[-1][:-4]
    elif kind in SOUNDS:
        form, make, copies, told = SOUNDS[kind]
        row.holds(make(row.samples) * copies, form)
        row.seconds *= copies
    elif kind in FIELDS:
        _, column, row.sheet[column] = FIELDS[kind]
        told = UNREAD if kind in _UNREAD else ""
    else:
        told, other = PAIRS[kind], another()
        if kind == "same name, two folders":
            row.id = f"again/{other.id}"
            row.holds(row.data)
        elif kind == "text of training in test":
            row.text = row.sheet["text"] = other.text.upper()
        else:
            row.data, row.samples, row.seconds = other.data, other.samples, other.seconds
        other.kind, other.told = kind, {KEPT, told} - {""}
    row.told = {told} if told.startswith((UNREAD, "left out")) else {KEPT, told} - {""}


def write_files(rows: Sequence[Row], folder: Path) -> None:
    for row in rows:
        path = folder / "data" / row.corpus / row.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if row.data is not None:
            path.write_bytes(row.data)


def write_sheets(rows: Sequence[Row], folder: Path) -> None:
    """One as a spreadsheet of another country saves it, one with a first line that says how."""
    for corpus, separator, first, coding in (
        ("speech", ";", "", "utf-16"), ("speech_ood", "\t", "sep=\t\r\n", "utf-8-sig")
    ):  # fmt: skip
        out = io.StringIO(first, newline="")
        out.seek(0, io.SEEK_END)
        table = csv.writer(out, delimiter=separator)
        table.writerow([*(name.replace("_", " ").upper() for name in COLUMNS), ""])
        for row in (row for row in rows if row.corpus == corpus and row.sheet):
            table.writerow([*row.sheet.values(), ""])
            row.line = out.getvalue().count("\n")
        table.writerows([[""] * 5] * 3)
        path = folder / "data" / corpus / "metadata.csv"
        path.write_bytes(out.getvalue().encode(coding))
