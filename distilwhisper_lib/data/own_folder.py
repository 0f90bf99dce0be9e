"""Own recordings: a folder with a `metadata.csv` or `metadata.jsonl`, joined by file name.

It is how one brings one's own language, and how the embedded demo is stored. Whoever made the
folder can mend it, so nothing is left out silently: every mistake is an error with its line.
"""

from __future__ import annotations

import csv
import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import pandas as pd

from distilwhisper_lib.config.settings import EMBEDDED, locate
from distilwhisper_lib.data.clips import COLUMNS, VOTES, Corpus, Inspection
from distilwhisper_lib.data.inspection import MEMORY, RequireWhole
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.io.files import parse_json, sha256_file
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.text import says_nothing
from distilwhisper_lib.speech.audio import audio_seconds, check_segment
from distilwhisper_lib.speech.guarded import header_seconds

_NEEDED = ("file_name", "text", "language", "split")
# What a user takes for a recording, readable or not.
RECORDINGS = {
    ".aac", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".mp3", ".mp4", ".oga", ".ogg",
    ".opus", ".w64", ".wav", ".webm", ".wma",
}  # fmt: skip
_MAX_DIGITS = 15  # of a vote
_METADATA = ("metadata.csv", "metadata.jsonl")
_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")

# A row of metadata as read: its line in the file (for messages) and its fields as text.
Row = tuple[int, dict[str, str]]


def open_folder(rest: str, language: str, split: str, data_dir: str) -> Corpus:
    """The corpus ``folder/<rest>``: `read_folder` in that subfolder of `data_dir`.

    Its licence is the first line of a LICENSE file in the folder, where there is one.
    """
    if not rest.strip("/"):
        raise UserError("Corpus 'folder' names no folder: write 'folder/<subfolder of data_dir>'.")
    if Path(rest).is_absolute() or ".." in Path(rest).parts:
        raise UserError(f"Corpus folder {rest!r} leaves {data_dir}: name a folder within it.")
    folder = Path(locate(data_dir)) / rest
    table = read_folder(folder, language, split)
    about = _about(folder, rest, data_dir)
    if _is_embedded(data_dir):
        return Corpus(table, about, require_as_shipped)
    return Corpus(table, about, RequireWhole(table, folder, folder / MEMORY))


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

    The metadata is UTF-8. Needed: file_name (relative to the folder), text (or transcription),
    language (name or code), split. Optional: id (default: the file name's stem), start and end
    (seconds; many utterances may share a file), speaker, seconds (default: from the audio
    header), up_votes, down_votes. Every field is text as it stands: "null" and "NA" are words.

    Returns the columns of `COLUMNS`, then the vote columns if there are any, in the file's order;
    audio is ``folder/file_name``. Raises `UserError`, naming the file and its line, for missing
    columns, empty texts, duplicate ids, unknown languages, wrong numbers, files that are missing
    or outside the folder, segments outside their file, a recording or segment that two rows name,
    recordings in the folder that no row names, and when nothing is left.
    """
    folder, code = Path(folder), find_language(language).code
    path = _find_metadata(folder)
    rows = _rename_text(path, list(_read_metadata(path)))
    _check_columns(path, rows)
    languages = [_language(path, row) for row in rows]
    ids = _ids(path, rows)
    chosen = [
        (row, id_)
        for row, row_language, id_ in zip(rows, languages, ids, strict=True)
        if row_language == code and row[1]["split"].strip() == split
    ]
    if not chosen:
        raise _nothing_left(path, code, split, rows, languages)
    ours = folder.resolve().is_relative_to(locate(EMBEDDED))
    seconds_of = lru_cache(maxsize=None)(audio_seconds if ours else header_seconds)
    records = [_record(path, row, id_, code, split, seconds_of) for row, id_ in chosen]
    _check_named_once(path, rows)
    _check_none_left_over(path, rows)
    votes = [name for name in VOTES if any(name in fields for _, fields in rows)]
    return pd.DataFrame.from_records(records, columns=COLUMNS + votes)


# --- metadata files -----------------------------------------------------------------------------


def _find_metadata(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"Corpus folder {folder} does not exist: check data_dir and its name.")
    found = [path for name in ("csv", "jsonl") if (path := folder / f"metadata.{name}").is_file()]
    if len(found) != 1:
        raise UserError(
            f"Corpus folder {folder} holds {'both' if found else 'neither'} metadata.csv "
            f"{'and' if found else 'nor'} metadata.jsonl: keep exactly one of them."
        )
    return found[0]


def _read_metadata(path: Path) -> Iterator[Row]:
    read = _read_csv if path.suffix == ".csv" else _read_jsonl
    try:
        # "-sig" because spreadsheets put a byte-order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from read(path, file)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8.") from error


def _read_csv(path: Path, file: Iterable[str]) -> Iterator[Row]:
    # The csv module, not pandas: it guesses no types, and it notices a row of the wrong length.
    reader = csv.reader(file, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise UserError(f"{path} has the column {twice[0]!r} twice: keep one of them.")
        for fields in reader:
            if not fields:  # an empty line
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, expected "
                    f"{len(header)}; put texts with commas between double quotes."
                )
            yield reader.line_num, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: not CSV ({error}); "
            "write a double quote within a text twice."
        ) from error


def _read_jsonl(path: Path, file: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = parse_json(line)
        except ValueError as error:  # also a number of 5,000 digits
            what = error.msg if isinstance(error, json.JSONDecodeError) else reason(error)
            raise UserError(
                f"{path}, line {number}: not JSON ({what}); write one object a line."
            ) from error
        if not isinstance(fields, dict):
            raise UserError(f"{path}, line {number}: expected one JSON object a line.")
        yield number, {key: _as_text(path, number, key, value) for key, value in fields.items()}


def _as_text(path: Path, number: int, key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(
            f"{path}, line {number}: {key} is {reprlib.repr(value)}, "
            "expected text or a number; correct it."
        )
    return str(value)


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


# --- checks -------------------------------------------------------------------------------------


def _check_columns(path: Path, rows: list[Row]) -> None:
    if not rows:
        raise UserError(f"{path} holds no rows: it needs the columns {', '.join(_NEEDED)}.")
    for number, fields in rows:  # every row, because a JSON line has its own keys
        if missing := [name for name in _NEEDED if name not in fields]:
            raise UserError(
                f"{path}, line {number}: no {', '.join(missing)}; "
                f"the needed columns are {', '.join(_NEEDED)}."
            )


def _language(path: Path, row: Row) -> str:
    try:
        return find_language(row[1]["language"]).code
    except UserError as error:
        raise UserError(f"{path}, line {row[0]}: {error}") from None


def _ids(path: Path, rows: list[Row]) -> list[str]:
    """One id a row, unique in the whole file: the id column, else the file name's stem."""
    ids = [fields.get("id", "").strip() or Path(fields["file_name"]).stem for _, fields in rows]
    seen: dict[str, int] = {}
    for (number, _), id_ in zip(rows, ids, strict=True):
        if len(id_.splitlines()) != 1 or id_.startswith("#"):
            raise UserError(
                f"{path}, line {number}: the id {id_!r} must be one line that does not begin "
                "with '#'; rename it."
            )
        if id_ in seen:
            raise UserError(
                f"{path}, line {number}: the id {id_!r} stands on line {seen[id_]} already; "
                "give every row its own in a column id."
            )
        seen[id_] = number
    return ids


def _record(
    path: Path, row: Row, id_: str, code: str, split: str, seconds_of: Callable[[Path], float]
) -> dict[str, object]:
    """One checked row of the table; `seconds_of` gives the length of a file."""
    number, fields = row
    text, speaker = fields["text"].strip(), fields.get("speaker", "").strip()
    if says_nothing(text):
        said = f" ({reprlib.repr(text)} says nothing)" if text else ""
        raise UserError(f"{path}, line {number}: the text is empty{said}; write or drop the row.")
    start, end, seconds = (_number(path, row, name) for name in ("start", "end", "seconds"))
    audio = _audio_path(path, row)
    if not (math.isnan(start) and math.isnan(end)):
        try:
            check_segment(audio, start, end, seconds_of(audio))
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if math.isnan(seconds):
        last = seconds_of(audio) if math.isnan(end) else end
        seconds = last - (0.0 if math.isnan(start) else start)
    elif seconds <= 0:
        raise UserError(f"{path}, line {number}: seconds is {seconds:g}; it must be above 0.")
    values = (id_, str(audio), start, end, text, code, speaker, seconds, split)
    return dict(zip(COLUMNS, values, strict=True)) | _votes(path, row)


def _audio_path(path: Path, row: Row) -> Path:
    number, fields = row
    name = fields["file_name"].strip()
    if not name or "\0" in name:
        raise UserError(f"{path}, line {number}: file_name is {name!r}; name the recording.")
    audio = path.parent / name
    # Resolved, so that neither ".." nor a link reads what the folder does not hold.
    if not Path(os.path.realpath(audio)).is_relative_to(os.path.realpath(path.parent)):
        raise UserError(
            f"{path}, line {number}: {name!r} leaves the folder; move the recording into it."
        )
    if not os.path.isfile(audio):  # Path.is_file raises at a name of 300 characters
        raise UserError(
            f"{path}, line {number}: the audio file {audio} does not exist; correct file_name."
        )
    return audio


def _check_named_once(path: Path, rows: list[Row]) -> None:
    """No recording, or segment of one, may stand in two rows: one would be counted twice."""
    seen: dict[tuple[str, float, float], int] = {}
    for number, fields in rows:
        bounds = (_number(path, (number, fields), name) for name in ("start", "end"))
        start, end = (-1.0 if math.isnan(bound) else bound for bound in bounds)
        place = (os.path.normpath(fields["file_name"].strip()), start, end)
        if place in seen:
            raise UserError(
                f"{path}, line {number}: {fields['file_name']!r} is named on line {seen[place]} "
                "already; drop one of the rows or give them different segments."
            )
        seen[place] = number


def _check_none_left_over(path: Path, rows: list[Row]) -> None:
    """Every recording below the folder has a row; a subfolder with metadata is its own corpus."""
    named = {os.path.normpath(path.parent / fields["file_name"].strip()) for _, fields in rows}
    extra = sorted(file for file in _recordings(path.parent) if os.path.normpath(file) not in named)
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise UserError(
            f"{path} has no row for {extra[0].relative_to(path.parent)}{more}: "
            "add the rows or move the recordings out of the folder."
        )


def _recordings(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):  # what the system keeps there, such as ._a.wav
            continue
        if entry.is_dir(follow_symlinks=False):
            if not any((Path(entry) / name).exists() for name in _METADATA):
                yield from _recordings(Path(entry))
        elif Path(entry).suffix.lower() in RECORDINGS:
            yield Path(entry)


def _number(path: Path, row: Row, name: str) -> float:
    """A field in seconds; NaN where it is absent or empty."""
    number, fields = row
    if not (field := fields.get(name, "").strip()):
        return math.nan
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{path}, line {number}: {name} is {reprlib.repr(field)}; write seconds such as 1.25."
        )
    return value


def _votes(path: Path, row: Row) -> dict[str, int]:
    number, fields = row
    votes = {name: fields.get(name, "").strip() or "0" for name in VOTES}
    for name, field in votes.items():
        if not (field.isascii() and field.isdigit() and len(field) <= _MAX_DIGITS):
            raise UserError(
                f"{path}, line {number}: {name} is {reprlib.repr(field)}; write a whole number."
            )
    return {name: int(field) for name, field in votes.items()}


def _nothing_left(
    path: Path, code: str, split: str, rows: list[Row], languages: list[str]
) -> UserError:
    held = Counter(
        (language, row[1]["split"].strip()) for row, language in zip(rows, languages, strict=True)
    )
    listed = ", ".join(f"{language} {name} ({n})" for (language, name), n in sorted(held.items()))
    return UserError(
        f"{path} has no rows of language {code!r} and split {split!r}: it holds {listed}."
    )
