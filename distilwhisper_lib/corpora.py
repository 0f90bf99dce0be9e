"""Speech corpora of any origin as one table: a row an utterance, the columns of `COLUMNS`.

`load_corpus` finds the reader by the corpus's name. `read_folder` reads a folder of recordings
with a `metadata.csv` or `metadata.jsonl`, which is how one brings one's own language and how the
embedded demo is stored.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd

from .audio import audio_seconds, check_segment
from .config import locate
from .errors import UserError
from .languages import find_language

# audio: path; start, end: seconds within it, NaN for the whole file; language: Whisper code.
COLUMNS = ["id", "audio", "start", "end", "text", "language", "speaker", "seconds", "split"]
VOTES = ["up_votes", "down_votes"]

_NEEDED = ("file_name", "text", "language", "split")

# A row of metadata as read: its line in the file (for messages) and its fields as text.
Row = tuple[int, dict[str, str]]


def load_corpus(name: str, language: str, split: str, data_dir: str | Path) -> pd.DataFrame:
    """The rows of one corpus in one language and split, with the columns of `COLUMNS`.

    `name` is ``"folder/<subfolder of data_dir>"``; a `data_dir` that starts with ``"embedded"``
    is the package's demo. Raises `UserError` for an unknown corpus and as the reader does.
    """
    kind, _, rest = name.partition("/")
    if kind not in READERS:
        known = ", ".join(READERS)
        raise UserError(
            f"Unknown corpus {name!r}: the kinds are {known}; write for example 'folder/speech'."
        )
    return READERS[kind](rest, language, split, Path(locate(str(data_dir))))


def _load_folder(rest: str, language: str, split: str, data_dir: Path) -> pd.DataFrame:
    if not rest.strip("/"):
        raise UserError("Corpus 'folder' names no folder: write 'folder/<subfolder of data_dir>'.")
    if Path(rest).is_absolute() or ".." in Path(rest).parts:
        raise UserError(f"Corpus folder {rest!r} leaves {data_dir}: name a folder within it.")
    return read_folder(data_dir / rest, language, split)


# What stands before the slash of a corpus's name -> its reader (rest of name, language, split,
# data folder).
READERS: dict[str, Callable[[str, str, str, Path], pd.DataFrame]] = {"folder": _load_folder}


def read_folder(folder: str | Path, language: str, split: str) -> pd.DataFrame:
    """Own recordings: the rows of one language and split of ``folder/metadata.csv`` or ``.jsonl``.

    The metadata is UTF-8. Needed: file_name (relative to the folder), text (or transcription),
    language (name or code), split. Optional: id (default: the file name's stem), start and end
    (seconds; many utterances may share a file), speaker, seconds (default: from the audio
    header), up_votes, down_votes. Every field is text as it stands: "null" and "NA" are words.

    Returns the columns of `COLUMNS`, then the vote columns if there are any, in the file's order;
    audio is ``folder/file_name``. Raises `UserError`, naming the file and its line, for missing
    columns, empty texts, duplicate ids, unknown languages, wrong numbers, files that are missing
    or outside the folder, segments outside their file, and when nothing is left.
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
    seconds_of = lru_cache(maxsize=None)(audio_seconds)
    records = [_record(path, row, id_, code, split, seconds_of) for row, id_ in chosen]
    votes = [name for name in VOTES if any(name in fields for _, fields in rows)]
    return pd.DataFrame.from_records(records, columns=COLUMNS + votes)


def corpus_hash(table: pd.DataFrame) -> str:
    """SHA-256 (hex) of what a model hears and is told: ids, texts, languages, segments, audio.

    The order of the rows and the place of the files do not matter. Each audio file is read once.
    """
    needed = table[["id", "text", "language", "start", "end", "audio"]].sort_values("id")
    digest = hashlib.sha256()
    for id_, text, language, start, end, audio in needed.itertuples(index=False):
        bounds = [None if math.isnan(bound) else bound for bound in (start, end)]
        line = [id_, text, language, *bounds, _file_digest(audio)]
        digest.update(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def _file_digest(audio: str) -> str:
    path = Path(audio)
    if not path.is_file():
        raise UserError(f"Audio file {audio} does not exist: check its name and folder.")
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**17)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number}: not JSON ({error.msg}); write one object a line."
            ) from error
        if not isinstance(fields, dict):
            raise UserError(f"{path}, line {number}: expected one JSON object a line.")
        yield number, {key: _as_text(path, number, key, value) for key, value in fields.items()}


def _as_text(path: Path, number: int, key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(
            f"{path}, line {number}: {key} is {value!r}, expected text or a number; correct it."
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
    if not text:
        raise UserError(f"{path}, line {number}: the text is empty; write or drop the row.")
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
    if not audio.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(
            f"{path}, line {number}: {name!r} leaves the folder; move the recording into it."
        )
    if not audio.is_file():
        raise UserError(
            f"{path}, line {number}: the audio file {audio} does not exist; correct file_name."
        )
    return audio


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
        raise UserError(f"{path}, line {number}: {name} is {field!r}; write seconds such as 1.25.")
    return value


def _votes(path: Path, row: Row) -> dict[str, int]:
    number, fields = row
    votes = {name: fields.get(name, "").strip() or "0" for name in VOTES}
    for name, field in votes.items():
        if not (field.isascii() and field.isdigit()):
            raise UserError(f"{path}, line {number}: {name} is {field!r}; write a whole number.")
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
