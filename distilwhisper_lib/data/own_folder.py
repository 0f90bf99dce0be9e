"""Own recordings: a folder with a `metadata.csv` or `metadata.jsonl`, joined by file name.

It is how one brings one's own language, and how the embedded demo is stored. Whoever made the
folder can mend it, so nothing is left out silently: every mistake is an error with its line.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, lru_cache
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import pandas as pd

from distilwhisper_lib.config.settings import EMBEDDED, locate
from distilwhisper_lib.data.clips import COLUMNS, VOTES, WHERE, Corpus, Inspection
from distilwhisper_lib.data.inspection import MEMORY, RequireWhole
from distilwhisper_lib.errors import Faults, UserError
from distilwhisper_lib.io.files import sha256_file
from distilwhisper_lib.io.sheets import Row, read_sheet
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.text import says_nothing
from distilwhisper_lib.speech.audio import audio_seconds, check_segment
from distilwhisper_lib.speech.guarded import header_seconds

_NEEDED = ("file_name", "text", "language", "split")
_KNOWN = {*_NEEDED, *VOTES, "id", "start", "end", "speaker", "seconds"}
# What a user takes for a recording, readable or not.
RECORDINGS = {
    ".3gp", ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka", ".mkv",
    ".mov", ".mp3", ".mp4", ".oga", ".ogg", ".opus", ".sph", ".w64", ".wav", ".webm", ".wma",
}  # fmt: skip
# Of a corpus, and the words for them in sheets, in any case.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing"),
}
_MAX_DIGITS = 15  # of a vote
_LONGEST = 255  # characters of a name that is compared with others
_DECIMAL_COMMA = re.compile(r"^([+-]?\d*),(\d+)$")
_SHEETS = (".csv", ".tsv", ".txt", ".xlsx", ".xls", ".ods", ".json", ".jsonl")
_METADATA = ("metadata.csv", "metadata.jsonl")
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")


def open_folder(rest: str, language: str, split: str, data_dir: str) -> Corpus:
    """The corpus ``folder/<rest>``: `read_folder` in that subfolder of `data_dir`.

    Its licence is the first line of a LICENSE file in the folder, where there is one.
    """
    if not rest.strip("/"):
        raise UserError("Corpus 'folder' names no folder: write 'folder/<subfolder of data_dir>'.")
    if Path(rest).is_absolute() or ".." in Path(rest).parts:
        raise UserError(f"Corpus folder {rest!r} leaves {data_dir}: name a folder within it.")
    folder = Path(locate(data_dir)) / rest
    read = _read(folder, language, split)
    about = _about(folder, rest, data_dir)
    if _is_embedded(data_dir):
        if read.faults:
            raise Faults(read.faults)
        return Corpus(read.table, about, require_as_shipped)
    checks = RequireWhole(read.table, folder, folder / MEMORY)
    if read.faults:  # with what decoding finds, so that all is told at once
        raise Faults([*read.faults, *checks.faults()])
    return Corpus(
        read.table, about, checks, sheet=read.places, unknown_columns=read.unknown_columns
    )


def require_as_shipped(clips: Sequence[Path]) -> list[Inspection]:
    """The length of each of the demo's recordings: what has its digest decodes, as it did when it
    was built."""
    for clip in dict.fromkeys(clips):
        shipped = _shipped().get(f"{clip.parent.name}/{clip.name}", {})
        if sha256_file(clip) != shipped.get("sha256"):
            raise UserError(f"{clip} is not the file that came with the package: install it again.")
    seconds = {clip: audio_seconds(clip) for clip in dict.fromkeys(clips)}
    return [Inspection(seconds[clip]) for clip in clips]


@cache
def _shipped() -> dict[str, dict[str, object]]:
    manifest = Path(locate(EMBEDDED)) / "manifest.json"
    return json.loads(manifest.read_text(encoding="utf-8"))["files"]


def _is_embedded(data_dir: str) -> bool:
    return f"{data_dir}/".startswith(EMBEDDED)


def _about(folder: Path, rest: str, data_dir: str) -> dict[str, str]:
    name = f"folder/{rest}"
    if _is_embedded(data_dir):
        source = "synthetic speech (espeak-ng) that comes with this package"
        return {"name": name, "licence": "MIT", "source": source}
    licence = "not stated"
    for path in (folder / file for file in _LICENCES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            licence = next((line.strip() for line in lines if line.strip()), licence)
            break
    return {"name": name, "licence": licence, "source": f"own recordings in {folder.name}"}


def read_folder(folder: str | Path, language: str, split: str) -> pd.DataFrame:
    """Own recordings: the rows of one language and split of ``folder/metadata.csv`` or ``.jsonl``.

    Needed columns: file_name (relative to the folder), text (or transcription), language (name or
    code), split (one of `SPLITS`' words). Optional: id (default: the file name's stem, with its
    folder where another has the same), start and end (seconds; many utterances may share a file),
    speaker, seconds (default: from the audio header), up_votes, down_votes. How a sheet may be
    saved: `io.sheets.read_sheet`. A file is found under its name in any case and Unicode form.

    Returns the columns of `COLUMNS`, `WHERE`, then the vote columns if there are any, in the
    file's order. Raises `UserError`, naming the file and up to three lines with what is wrong
    there, for missing columns, empty texts, duplicate ids, unknown languages and splits, wrong
    numbers, files that are missing or outside the folder, segments outside their file, a recording
    or segment that two rows name, recordings in the folder that no row names, and when nothing is
    left.
    """
    read = _read(Path(folder), language, split)
    if read.faults:
        raise Faults(read.faults)
    return read.table


class _Sheet(NamedTuple):
    """What a sheet says of one language and split, and of itself."""

    table: pd.DataFrame  # the rows that can be used, as `read_folder` has them
    places: dict[tuple[str, str], list[str]]  # of all its rows, by language and split
    faults: list[tuple[str, str]]  # as errors.Faults has them
    unknown_columns: list[str]


def _read(folder: Path, language: str, split: str) -> _Sheet:
    """`read_folder`, its faults told rather than raised."""
    code = find_language(language).code
    path = _find_metadata(folder)
    rows = _rename_text(path, read_sheet(path, [*_NEEDED, "transcription"]))
    _check_columns(path, rows)
    files, faults = _Files(folder), _Faulty(path)
    lines = faults.of(
        rows, lambda row: _Line(*row, _language(row, code), _split(row), files.of(row))
    )
    lines = faults.of(lines, _named_once())  # before ids, which would be asked for in vain
    ids = _ids(path, lines)
    sheet: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        sheet.setdefault((line.language, line.split), []).append(_where(path, line))
    chosen = [
        (line, id_)
        for line, id_ in zip(lines, ids, strict=True)
        if line.language == code and line.split == split
    ]
    if not (chosen or faults.found):
        raise _nothing_left(path, code, split, sheet)
    ours = folder.resolve().is_relative_to(locate(EMBEDDED))
    seconds_of = lru_cache(maxsize=None)(audio_seconds if ours else header_seconds)
    records = faults.of(chosen, lambda row: _record(path, *row, files, seconds_of))
    faults.found += _left_over(path, [files.meant(row) for row in rows])
    votes = [name for name in VOTES if any(name in fields for _, fields in rows)]
    table = pd.DataFrame.from_records(records, columns=[*COLUMNS, WHERE, *votes])
    unknown = dict.fromkeys(name for _, fields in rows for name in fields if name not in _KNOWN)
    return _Sheet(table, sheet, faults.found, list(unknown))


class _Line(NamedTuple):
    """One row of the sheet: its line, its fields, and what three of them mean."""

    number: int
    fields: dict[str, str]
    language: str  # Whisper code
    split: str  # a key of SPLITS
    audio: Path


class _Faulty:
    """What is wrong with the rows of a sheet: all of it, each fault after its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[str, str]] = []

    def of(self, rows: Sequence[Any], check: Callable[[Any], Any]) -> list[Any]:
        """`check` of every row that passes it."""
        passed = []
        for row in rows:
            try:
                passed.append(check(row))
            except UserError as error:
                number = row[0] if isinstance(row[0], int) else row[0].number
                self.found.append((f"{self.path}, line {number}", str(error)))
        return passed


# --- metadata files -----------------------------------------------------------------------------


def _find_metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"Corpus folder {folder} does not exist: make it, or name another one by the settings "
            "data_dir, in_domain and out_of_domain (who has one test set only names its folder as "
            "out_of_domain, too)."
        )
    found = [path for name in _METADATA if (path := folder / name).is_file()]
    if len(found) != 1:
        raise UserError(
            f"Corpus folder {folder} holds {'both' if found else 'neither'} metadata.csv "
            f"{'and' if found else 'nor'} metadata.jsonl: "
            + ("keep exactly one of them." if found else _another_sheet(folder))
        )
    return found[0]


def _another_sheet(folder: Path) -> str:
    """What to do about a folder without metadata, by what lies in it."""
    sheets = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in _SHEETS)
    if not sheets:
        return "write one of them."
    return f"save {sheets[0]} as metadata.csv, in UTF-8 (in Excel as 'CSV UTF-8')."


def _rename_text(path: Path, rows: list[Row]) -> list[Row]:
    """`rows` with the column transcription, the audio folder's usual name, called text."""
    renamed = []
    for number, fields in rows:
        if "transcription" in fields:
            if "text" in fields:
                raise UserError(
                    f"{path} has both columns text and transcription: keep one of them."
                )
            fields = {("text" if k == "transcription" else k): v for k, v in fields.items()}
        renamed.append((number, fields))
    return renamed


class _Files:
    """The recordings of a folder by what a sheet may call them: another system's case, slashes or
    Unicode form are the same name there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, row: Row) -> Path:
        """The file that a row names, or where it should be."""
        name = row[1]["file_name"].strip()
        if os.path.isfile(named := self.folder / name):  # Path.is_file raises at a long name
            return named
        alike = self._known.get(_plain(name), [])
        return alike[0] if len(alike) == 1 else self.folder / name.replace("\\", "/")

    def meant(self, row: Row) -> Path:
        """The file that a row names, or, if there is none, the one that it should name."""
        file, near = self.of(row), self.near(row[1]["file_name"].strip())
        return file if os.path.isfile(file) or not near else self.folder / near

    def near(self, name: str) -> str | None:
        """The recording that has this name but for its suffix, if there is one."""
        wanted = _plain(name)
        found = self._by_stem.get(wanted) or self._by_stem.get(os.path.splitext(wanted)[0])
        return found and str(found.relative_to(self.folder))

    @cached_property
    def _by_stem(self) -> dict[str, Path]:
        return {os.path.splitext(name)[0]: paths[0] for name, paths in self._known.items()}

    @cached_property
    def _known(self) -> dict[str, list[Path]]:
        known: dict[str, list[Path]] = {}
        for path in sorted(_recordings(self.folder)):
            known.setdefault(_plain(str(path.relative_to(self.folder))), []).append(path)
        return known


def _plain(name: str) -> str:
    """A file name as systems compare them that tell neither case nor Unicode forms apart."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()
    return os.path.normpath(plain).removeprefix("/")


# --- checks -------------------------------------------------------------------------------------


def _check_columns(path: Path, rows: list[Row]) -> None:
    if not rows:
        raise UserError(f"{path} holds no rows: it needs the columns {', '.join(_NEEDED)}.")
    for number, fields in rows:  # every row, because a JSON line has its own keys
        if missing := [name for name in _NEEDED if name not in fields]:
            held = ", ".join(fields)[:_LONGEST] or "nothing"
            place = f"line {number}" if path.suffix == ".jsonl" else "first line"
            raise UserError(
                f"{path}, {place}: no column {', '.join(missing)}, but {held}; call the columns "
                f"{', '.join(_NEEDED)}, as they stand here."
            )


def _language(row: Row, code: str) -> str:
    """A row's language, also one that Whisper does not know: most are not what a run reads."""
    given = row[1]["language"]
    if not given.strip():
        raise UserError(f"the language is empty; write {code!r}, or what the row is in.")
    try:
        return find_language(given).code
    except UserError:
        raise UserError(
            f"the language is {reprlib.repr(given)}; write its code or English name, such as "
            f"{code!r} for the language of this run."
        ) from None


def _split(row: Row) -> str:
    given = row[1]["split"].strip().casefold()
    if found := next((split for split, words in SPLITS.items() if given in words), None):
        return found
    raise UserError(
        f"split is {reprlib.repr(row[1]['split'])}; write train, validation or test, or drop the "
        "row."
    )


def _ids(path: Path, lines: list[_Line]) -> list[str]:
    """One id a row, unique in the whole file: the id column, else the file name's stem, with its
    folder where two are alike."""
    names = [os.path.splitext(os.path.normpath(_slashed(line)))[0] for line in lines]
    given = [line.fields.get("id", "").strip() for line in lines]
    files = {(name, Path(name).name) for name, id_ in zip(names, given, strict=True) if not id_}
    shared = Counter(stem for _, stem in files)
    ids = [
        id_ or (name if shared[stem := Path(name).name] > 1 else stem)
        for name, id_ in zip(names, given, strict=True)
    ]
    seen: dict[str, int] = {}
    faults = []
    for (number, *_), id_ in zip(lines, ids, strict=True):
        if len(id_.splitlines()) != 1 or id_.startswith("#"):
            fault = f"the id {id_!r} must be one line that does not begin with '#'; rename it."
        elif (first := seen.setdefault(id_, number)) != number:
            fault = (
                f"the id {id_!r} stands on line {first} already; give every row its own in a "
                "column id."
            )
        else:
            continue
        faults.append((f"{path}, line {number}", fault))
    if faults:
        raise Faults(faults)
    return ids


def _slashed(line: _Line) -> str:
    name = line.fields["file_name"].strip().replace("\\", "/")
    return unicodedata.normalize("NFC", name)


def _record(
    path: Path, line: _Line, id_: str, files: _Files, seconds_of: Callable[[Path], float]
) -> dict[str, object]:
    """One checked row of the table; `seconds_of` gives the length of a file."""
    fields = line.fields
    text, speaker = fields["text"].strip(), fields.get("speaker", "").strip()
    if says_nothing(text):
        said = f" ({reprlib.repr(text)} says nothing)" if text else ""
        raise UserError(f"the text is empty{said}; write or drop the row.")
    start, end, seconds = (_number(fields, name) for name in ("start", "end", "seconds"))
    _check_audio(path, line, files)
    if not (math.isnan(start) and math.isnan(end)):
        check_segment(line.audio, start, end, seconds_of(line.audio))
    if math.isnan(seconds):
        last = seconds_of(line.audio) if math.isnan(end) else end
        seconds = last - (0.0 if math.isnan(start) else start)
    elif seconds <= 0:
        raise UserError(f"seconds is {seconds:g}; it must be above 0.")
    values = (id_, str(line.audio), start, end, text, line.language, speaker, seconds, line.split)
    where = {WHERE: _where(path, line)}
    return dict(zip(COLUMNS, values, strict=True)) | where | _votes(fields)


def _where(path: Path, line: _Line) -> str:
    return f"{path.name}, line {line.number}"


def _check_audio(path: Path, line: _Line, files: _Files) -> None:
    name, audio = line.fields["file_name"].strip(), line.audio
    if not name or "\0" in name:
        raise UserError(f"file_name is {name!r}; name the recording.")
    if PureWindowsPath(name).drive or name.startswith(("/", "\\", "file:")):
        near = files.near(PureWindowsPath(name).name)
        raise UserError(
            f"file_name is {name!r}, a place on somebody's computer; write the name that it has "
            f"in {path.parent}{f', {near!r}' if near else ''}."
        )
    # Resolved, so that neither ".." nor a link reads what the folder does not hold.
    if not Path(os.path.realpath(audio)).is_relative_to(os.path.realpath(path.parent)):
        raise UserError(f"{name!r} leaves the folder; move the recording into it.")
    if not os.path.isfile(audio):
        near = files.near(name)
        mend = f"is it {near!r}? Correct" if near else "put it there, drop the row or correct"
        raise UserError(f"the audio file {audio} does not exist; {mend} file_name.")


def _named_once() -> Callable[[_Line], _Line]:
    """A check that no recording, or segment of one, stands in two rows: one would count twice."""
    seen: dict[tuple[str, float, float], int] = {}

    def check(line: _Line) -> _Line:
        bounds = (_number(line.fields, name) for name in ("start", "end"))
        start, end = (-1.0 if math.isnan(bound) else bound for bound in bounds)
        place = (os.path.normpath(line.audio), start, end)
        if (first := seen.setdefault(place, line.number)) != line.number and _slashed(line):
            raise UserError(
                f"{line.fields['file_name']!r} is named on line {first} already; drop one of the "
                "rows or give them different segments."
            )
        return line

    return check


def _left_over(path: Path, files: list[Path]) -> list[tuple[str, str]]:
    """Recordings below the folder without a row; a subfolder with metadata is its own corpus."""
    named = set(map(os.path.normpath, files))
    extra = sorted(file for file in _recordings(path.parent) if os.path.normpath(file) not in named)
    fault = f"no row of {path.name} names it; add one, or move it out of the folder"
    return [(str(file), fault) for file in extra]


def _recordings(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):  # what the system keeps there, such as ._a.wav
            continue
        if entry.is_dir(follow_symlinks=False):
            if not any((Path(entry) / name).exists() for name in _METADATA):
                yield from _recordings(Path(entry))
        elif Path(entry).suffix.lower() in RECORDINGS:
            yield Path(entry)


def _number(fields: dict[str, str], name: str) -> float:
    """A field in seconds, its decimals after a point or comma; NaN where it is absent or empty."""
    if not (field := fields.get(name, "").strip()):
        return math.nan
    try:
        value = float(_DECIMAL_COMMA.sub(r"\1.\2", field))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{name} is {reprlib.repr(field)}; write seconds such as 1.25.")
    return value


def _votes(fields: dict[str, str]) -> dict[str, int]:
    votes = {name: fields.get(name, "").strip() or "0" for name in VOTES}
    for name, field in votes.items():
        if not (field.isascii() and field.isdigit() and len(field) <= _MAX_DIGITS):
            raise UserError(f"{name} is {reprlib.repr(field)}; write a whole number.")
    return {name: int(field) for name, field in votes.items()}


def _nothing_left(
    path: Path, code: str, split: str, sheet: dict[tuple[str, str], list[str]]
) -> UserError:
    held = ", ".join(f"{name} {part} ({len(rows)})" for (name, part), rows in sorted(sheet.items()))
    if code not in (name for name, _ in sheet):  # the same sentence for each split
        return UserError(
            f"{path} has no rows of language {code!r}: it holds {held}; run in one of these "
            "languages, or correct the column language."
        )
    return UserError(
        f"{path} has no rows of language {code!r} and split {split!r}: it holds {held}; write "
        f"{split} into the column split of some of them."
    )
