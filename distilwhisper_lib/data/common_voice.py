"""Common Voice as Mozilla ships it: a folder a language, with train.tsv, dev.tsv, test.tsv, clips/.

It left the Hugging Face hub in October 2025; `releases.py` unpacks and downloads it. Real releases
have empty, cut and missing recordings, stray quotes, and other columns in every version, so rows
that cannot be used are left out and reported rather than refused.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pandas as pd

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.clips import (
    COLUMNS,
    MALFORMED,
    NO_TEXT,
    TWICE,
    UNSAFE,
    VOTES,
    Corpus,
    Dropped,
)
from distilwhisper_lib.data.inspection import MEMORY, ClipChecks
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import code_in, find_language
from distilwhisper_lib.scoring.text import says_nothing

FOLDER = "common_voice"
SITE = "https://mozilladatacollective.com"
TABLES = {"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv",
          "validated": "validated.tsv"}  # fmt: skip
_SPLITS = ("train", "validation", "test")
CLIPS = "clips"
_RELEASES = "cv-corpus-*"
_MAX_DIGITS = 15  # of a count; int() refuses 5,000 of them
_PLAIN = re.compile(r"\w[\w .-]*\.\w+")  # a file name and nothing else


def open_common_voice(rest: str, language: str, split: str, data_dir: str) -> Corpus:
    """One split of a release; `rest` names the release folder where there are several.

    The id of a clip is its file name without the suffix, which survives re-hosting. Seconds are
    those of clip_durations.tsv, where the release has it, else the recording's. Left out and
    reported: rows that say nothing or with a file name that leaves clips/, rows of the wrong shape
    and clips named twice; `inspect` finds recordings that are missing, empty or broken.

    Raises `UserError` when no release or several are found, and when the split's table is
    missing, not UTF-8 or lacks a column.
    """
    code = code_in(FOLDER, find_language(language))
    if split not in TABLES:
        raise UserError(f"Common Voice has no split {split!r}: choose from {', '.join(TABLES)}.")
    release = find_release(Path(locate(data_dir)), code, rest)
    path, clips = release / TABLES[split], release / CLIPS
    for needed in (path, clips):
        if not needed.exists():
            raise UserError(f"{needed} does not exist: unpack the whole release of {code!r} again.")
    table, dropped = _read_table(path, clips, find_language(language).code, split)
    about = {
        "name": FOLDER,
        "licence": "CC0-1.0",
        "source": f"Mozilla Common Voice, {SITE}",
        "release": next((p.name for p in release.parents if p.match(_RELEASES)), "not named"),
    }
    return Corpus(table, about, ClipChecks(clips, release / MEMORY), dropped)


def find_release(data_dir: Path, code: str, release: str = "") -> Path:
    """The folder of one language: ``common_voice/<code>``, or ``<code>`` in a cv-corpus-* folder.

    The latter may lie in `data_dir`, in ``data_dir/common_voice`` or in the former. Raises
    `UserError`, saying how to get one, when there is none, and when there are several.
    """
    if release and (Path(release).name != release or release in (".", "..")):
        raise UserError(f"Release {release!r} is not the name of a folder: write for example "
                        "'common_voice/cv-corpus-13.0-2023-03-09'.")  # fmt: skip
    root = data_dir / FOLDER
    places = [data_dir, root, root / code]
    releases = sorted(found for place in places for found in place.glob(release or _RELEASES))
    parents = releases if release else [root, root / code, *releases]
    # Of some languages the folder also names the country, such as sv-SE.
    folders = [p for parent in parents for p in (parent / code, *sorted(parent.glob(f"{code}-*")))]
    found = [p for p in folders if any((p / table).is_file() for table in TABLES.values())]
    # A delta release has validated clips only, and may lie beside the whole one.
    found = [p for p in found if any((p / TABLES[s]).is_file() for s in _SPLITS)] or found
    if not found:
        wanted = f"release {release} of Common Voice" if release else "Common Voice"
        raise UserError(
            f"There is no {wanted} for {code!r} in {root}: get the language's archive from {SITE} "
            "(it left the Hugging Face hub in October 2025) and unpack it there with "
            "distilwhisper_lib.data.releases.unpack_common_voice."
        )
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(data_dir)) for path in found)
        raise UserError(
            f"There are several releases of Common Voice for {code!r}, {listed}: name one, as in "
            "'common_voice/cv-corpus-13.0-2023-03-09'."
        )
    return found[0]


def _read_table(
    path: Path, clips: Path, code: str, split: str
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The usable rows of one TSV file, and the others with the reason."""
    lines = _lines(path)
    columns = _columns(path, next(lines, (1, []))[1])
    votes = [name for name in VOTES if name in columns]
    # By column, because a release may have a million rows.
    values: dict[str, list[str]] = {n: [] for n in ("path", "sentence", "client_id", *votes)}
    dropped, seen = [], set()
    for number, fields in lines:
        row = _check_row(path, number, fields, columns)
        if isinstance(row, dict) and (id_ := _stem(row["path"])) in seen:
            row = Dropped(id_, TWICE, f"{path.name}, line {number}")
        if isinstance(row, Dropped):
            dropped.append(row)
            continue
        seen.add(id_)
        for name, column in values.items():
            column.append(row.get(name, ""))
    seconds_of = _durations(path.parent)
    table = {
        "id": [_stem(name) for name in values["path"]],
        "audio": [f"{clips}{os.sep}{name}" for name in values["path"]],
        "start": math.nan,
        "end": math.nan,
        "text": values["sentence"],
        "language": code,
        "speaker": values["client_id"],
        "seconds": [seconds_of.get(name, math.nan) for name in values["path"]],
        "split": split,
    }
    table |= {vote: [int(count or 0) for count in values[vote]] for vote in votes}
    return pd.DataFrame(table, columns=COLUMNS + votes), dropped


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Each line's number and fields, split at tabs and at nothing else.

    Quotes are text, "null" and "NA" are words, and only a line feed ends a line: csv and pandas
    would join two rows at a stray quote, and end one at the separators that Unicode calls lines.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 ({error.reason}): unpack the release again."
        ) from None


def _columns(path: Path, columns: list[str]) -> list[str]:
    """The columns of a TSV file; versions differ, but these two there must be."""
    for name in ("path", "sentence"):
        if name not in columns:
            raise UserError(
                f"{path} has no column {name!r} but {', '.join(columns) or 'nothing'}: unpack the "
                "release again, as it was shipped."
            )
    return columns


def _check_row(
    path: Path, number: int, fields: list[str], columns: list[str]
) -> dict[str, str] | Dropped:
    """The row by column, its path a bare file name, or why it cannot be used."""
    row = dict(zip(columns, fields, strict=False))
    given, text = row.get("path", "").strip(), row.get("sentence", "").strip()
    # Early releases left the suffix out; some re-hosted copies put the folder before the name.
    name = given if _PLAIN.fullmatch(given) else re.sub(r"^(.*/)?clips/", "", given)
    name = name if "." in name else f"{name}.mp3"
    # Editors cut empty fields at the end of a line; a tab within a text makes one too many.
    if len(fields) > len(columns) or "sentence" not in row or not given:
        reason, detail = MALFORMED, f": {len(fields)} fields, expected {len(columns)}"
    elif not _PLAIN.fullmatch(name) or ".." in given:
        reason, detail = UNSAFE, f": {ascii(given)}"
    elif wrong := [vote for vote in VOTES if not _is_count(row.get(vote) or "0")]:
        reason, detail = MALFORMED, f": {wrong[0]} is {reprlib.repr(row[wrong[0]])}"
    elif says_nothing(text):
        reason, detail = NO_TEXT, f": {reprlib.repr(text)}" if text else ""
    else:
        return row | {"path": name, "sentence": text}
    where = f"{path.name}, line {number}"
    id_ = ascii(_stem(Path(name).name))[1:-1] if given else where
    return Dropped(id_, reason, where + detail)


def _is_count(field: str) -> bool:
    return field.isdecimal() and len(field) <= _MAX_DIGITS


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _durations(release: Path) -> dict[str, float]:
    """File name -> seconds by clip_durations.tsv; empty for older releases, which lack it."""
    path = release / "clip_durations.tsv"
    if not path.is_file():
        return {}
    status = path.stat()
    return _read_durations(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_durations(path: Path, mtime_ns: int, size: int) -> dict[str, float]:
    seconds = {}
    for _, fields in _lines(path):
        if len(fields) > 1 and _is_count(fields[1]) and int(fields[1]) > 0:
            seconds[fields[0]] = int(fields[1]) / 1000
    return seconds
