"""Which utterances a run uses: the paper's selection rule, what is unusable, the leakage check.

A chosen subset is written as a list of ids, so that anyone with the corpus can rebuild it: row
numbers died with the data set they counted. Who has those numbers, and the old order, can still
turn them into ids.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from distilwhisper_lib.data.clips import (
    BROKEN,
    LABEL_TOO_LONG,
    NOTES,
    SILENT,
    TOO_LONG,
    WHERE,
    Corpus,
    Dropped,
    Inspection,
)
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.scoring.text import normalize_marks
from distilwhisper_lib.speech.audio import LENGTH_SLACK, QUARTER

_HEADER = "# sha256 "
# Broken clips above this share of those looked at, and above this number, mean a broken copy.
MAX_BROKEN_SHARE = 0.2
MAX_BROKEN = 20
# Letters, digits and spaces a second above which a text is too much for its clip. The fastest of
# the 4,231 rows of the small real corpora (benchmarks/recipes/fillets.py) has 23.6.
MAX_LETTERS = 40
HURRIED = "more text than can be said in its time"
_CHUNK = 4096  # clips opened at a time
_MAX_DIGITS = 15  # of a row number


class Leak(NamedTuple):
    """A sentence (normalised) or an id that stands in more than one split."""

    kind: str  # "text" or "id"
    value: str
    splits: tuple[str, ...]


def select(table: pd.DataFrame, size: int | None) -> pd.DataFrame:
    """The first `size` rows by up_votes descending, down_votes ascending, then id.

    Source: the paper's 3k, 10k and 28k subsets; the id as the last key makes ties repeatable. A
    vote column that is absent does not count. `size` None, or above the number of rows, gives all
    rows, in that order: look at the length of what comes back.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UserError(f"Subset size {size!r} is not a whole number above 0: correct it.")
    ascending = {"up_votes": False, "down_votes": True, "id": True}
    keys = [name for name in ascending if name in table.columns]
    ordered = table.sort_values(keys, ascending=[ascending[key] for key in keys], kind="stable")
    return ordered.head(len(ordered) if size is None else size).reset_index(drop=True)


def within_window(table: pd.DataFrame, max_seconds: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`(kept, dropped)`: the rows that fit a window of `max_seconds`, and those that do not.

    Whisper would cut a longer clip and still be told its whole text. A length that is not known
    yet (NaN) fits.
    """
    if not max_seconds > 0:
        raise UserError(f"max_seconds is {max_seconds!r}: give seconds above 0.")
    fits = ~(table["seconds"] > max_seconds)
    return table[fits].reset_index(drop=True), table[~fits].reset_index(drop=True)


def take_usable(
    corpus: Corpus,
    size: int | None,
    max_seconds: float,
    label_over: Callable[[str], str | None] = lambda text: None,
    ids: Sequence[str] | None = None,
) -> tuple[pd.DataFrame, list[Dropped]]:
    """The first `size` clips, in the order of `select`, that a run can use; and what was passed by.

    Left out are clips longer than `max_seconds`, those whose recording `corpus.inspect` finds
    wanting, and those for whose text `label_over` gives a reason. Recordings are opened in order
    and only until `size` is reached. `ids`, where given, takes the place of the rule: these clips
    in this order. Raises `UserError` for an id that the corpus has not, and when so many clips
    are broken that the corpus must be.
    """
    ordered = select(corpus.table, None) if ids is None else by_id(corpus.table, ids)
    ordered, long = within_window(ordered, max_seconds)
    if corpus.sheet:  # a person's: is it their recording that is long, or what they wrote?
        corpus.inspect([Path(path) for path in long["audio"]])
    _check_share(corpus, corpus.dropped, len(corpus.table) + len(corpus.dropped))
    dropped = list(corpus.dropped)
    dropped += [_too_long(clip, clip.seconds) for clip in long.itertuples()]
    kept: list[int] = []
    seconds: list[float] = []
    notes: list[tuple[str, ...]] = []
    looked_at, wanted = 0, len(ordered) if size is None else size
    while looked_at < len(ordered) and len(kept) < wanted:
        chunk = ordered.iloc[looked_at : looked_at + min(_CHUNK, wanted - len(kept))]
        found = corpus.inspect([Path(path) for path in chunk["audio"]])
        for number, (clip, result) in enumerate(zip(chunk.itertuples(), found, strict=True)):
            if problem := _problem(clip, result, max_seconds, label_over):
                dropped.append(problem)
            else:
                kept.append(looked_at + number)
                seconds.append(result.seconds if math.isnan(clip.seconds) else clip.seconds)
                odd = corpus.odd.get(clip.id, ())
                notes.append((*odd, *result.notes, *_hurried(clip.text, seconds[-1])))
        looked_at += len(chunk)
        _check_share(corpus, dropped[len(corpus.dropped) :], looked_at)
    table = ordered.iloc[kept].reset_index(drop=True)
    return table.assign(**{"seconds": seconds, NOTES: notes}), dropped


def by_id(table: pd.DataFrame, ids: Sequence[str]) -> pd.DataFrame:
    """The rows with these ids, in this order; `UserError` if the table lacks one."""
    rows = {id_: row for row, id_ in enumerate(table["id"])}
    if missing := [id_ for id_ in ids if id_ not in rows]:
        raise UserError(
            f"{len(missing)} of {len(ids)} clips of the subset are not in the corpus, the first "
            f"is {missing[0]!r}: use the release that the subset was made of."
        )
    return table.iloc[[rows[id_] for id_ in ids]].reset_index(drop=True)


def _problem(
    clip: Any, result: Inspection, max_seconds: float, label_over: Callable[[str], str | None]
) -> Dropped | None:
    """Why a row cannot be used, now that its recording has been opened."""
    if result.reason == SILENT:
        return Dropped(clip.id, SILENT, _told(clip, f"{result.seconds:.2f} s"))
    if result.reason:
        return Dropped(clip.id, result.reason, _told(clip, result.detail))
    first, last = (
        other if math.isnan(bound) else bound
        for bound, other in ((clip.start, 0.0), (clip.end, result.seconds))
    )
    # A person's bounds are a little outside of what they hear.
    within = [a <= first + LENGTH_SLACK and last - LENGTH_SLACK <= b for a, b in result.silences]
    if last - first > QUARTER and any(within):
        return Dropped(clip.id, SILENT, _told(clip, f"{first:.2f} to {last:.2f} s"))
    # The length of a file that holds many utterances says nothing of one.
    if math.isnan(clip.start) and math.isnan(clip.end) and result.seconds > max_seconds:
        return _too_long(clip, result.seconds)
    if detail := label_over(clip.text):
        return Dropped(clip.id, LABEL_TOO_LONG, _told(clip, detail))
    return None


def _hurried(text: str, seconds: float) -> tuple[str, ...]:
    """A note where nobody could have said the text in the time: a part of it may be missing."""
    return (HURRIED,) if len(normalize_marks(text)) > MAX_LETTERS * seconds else ()


def _too_long(clip: Any, seconds: float) -> Dropped:
    return Dropped(clip.id, TOO_LONG, _told(clip, f"{seconds:.2f} s"))


def _told(clip: Any, detail: str) -> str:
    """A detail after the place of the clip's row, where the reader knows it."""
    return ": ".join(filter(None, (getattr(clip, WHERE, ""), detail)))


def _check_share(corpus: Corpus, dropped: list[Dropped], looked_at: int) -> None:
    broken = [clip for clip in dropped if clip.reason in BROKEN]
    if len(broken) > max(MAX_BROKEN, MAX_BROKEN_SHARE * looked_at):
        reason, count = Counter(clip.reason for clip in broken).most_common(1)[0]
        raise UserError(
            f"Corpus {corpus.about['name']!r} is broken: {len(broken)} of {looked_at} clips cannot "
            f"be used, {count} of them for {reason} such as {broken[-1].id!r}: unpack or copy it "
            "again."
        )


def check_disjoint(splits: Mapping[str, pd.DataFrame]) -> list[Leak]:
    """Sentences and ids that two or more of the named tables share; empty when all is well.

    Sentences are compared after the mark-preserving normaliser, so that a change of case or
    punctuation does not hide one. Sorted by kind and value.
    """
    leaks = []
    for kind, normalize in (("text", normalize_marks), ("id", str)):
        first: dict[str, str] = {}  # where a value was met first: most are met nowhere else
        shared: dict[str, set[str]] = {}
        for split, table in splits.items():
            for value in map(normalize, table[kind]):
                if (before := first.setdefault(value, split)) != split:
                    shared.setdefault(value, {before}).add(split)
        leaks += [Leak(kind, value, tuple(sorted(found))) for value, found in shared.items()]
    return sorted(leaks)


def write_subset(table: pd.DataFrame, path: str | Path) -> Path:
    """Write the ids of `table`, one a line in its order, under a line with their SHA-256.

    Atomic: `path` holds the old content or the new, never a part. Creates the folder.
    """
    body = "".join(f"{id_}\n" for id_ in _checked_ids(table))
    return write_atomic(path, f"{_HEADER}{_sha256(body)}\n{body}")


def read_subset(path: str | Path) -> list[str]:
    """The ids that `write_subset` wrote; `UserError` if the file is missing or was altered."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Subset file {path} does not exist: check its name or write it again.")
    header, _, body = _text(path).partition("\n")
    if header != f"{_HEADER}{_sha256(body)}":
        raise UserError(
            f"Subset file {path} does not match the SHA-256 on its first line: "
            "restore it or write it again."
        )
    return body.split("\n")[:-1]


def read_row_numbers(path: str | Path) -> list[int]:
    """The row numbers of a text file, such as the authors' subsets: whole numbers, 0 the first.

    They may stand one a line or between commas and brackets. Raises `UserError` for a missing
    file, for anything else in it and for a number that stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"Row-number file {path} does not exist: check its name.")
    words = re.sub(r"[\[\](),;\s]+", " ", _text(path)).split()
    if wrong := [word for word in words if not word.isdecimal() or len(word) > _MAX_DIGITS]:
        raise UserError(f"Row-number file {path} holds {wrong[0]!r}: expected whole numbers only.")
    if not words:
        raise UserError(f"Row-number file {path} holds no number: check that it is the right one.")
    numbers = [int(word) for word in words]
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise UserError(
            f"Row-number file {path} holds {twice[0]} twice: a subset has each row once."
        )
    return numbers


def by_row_number(
    table: pd.DataFrame, numbers: Sequence[int], old_order: Sequence[str]
) -> pd.DataFrame:
    """The clips that stood at these rows of a data set that listed its clips in `old_order`.

    `old_order` names clips by id or by file name, as the lost data set's path column did; folders
    and suffix do not count. Source: the public code's subsets are row numbers of the hub's Common
    Voice 13. Raises `UserError` for a number beyond the order and a clip that the table lacks.
    """
    if beyond := [number for number in numbers if number >= len(old_order)]:
        raise UserError(
            f"Row {beyond[0]} is beyond the {len(old_order)} rows of the old order: give the order "
            "of the very table that the numbers count."
        )
    return by_id(table, [Path(old_order[number]).stem for number in numbers])


def convert_row_numbers(
    numbers: str | Path, old_table: str | Path, corpus: pd.DataFrame, path: str | Path
) -> Path:
    """Write the list, for `train_subset` or `validation_subset`, that a row-number file stands for.

    `numbers` as read_row_numbers() takes it; `old_table` a TSV file with a column path, in the
    order that the numbers count from 0 (the header line does not count); `corpus` the table of
    the same split as it is now. Errors as by_row_number(), and when the column is missing.
    """
    if not Path(old_table).is_file():
        raise UserError(f"Old table {old_table} does not exist: check its name.")
    lines = _text(Path(old_table)).removeprefix("\ufeff").rstrip("\n").split("\n")
    header = lines[0].rstrip("\r").split("\t")
    if "path" not in header:
        raise UserError(f"{old_table} has no column 'path': give the old table as a TSV file.")
    column = header.index("path")
    rows = [line.split("\t") for line in lines[1:]]
    if short := [number for number, row in enumerate(rows, start=2) if len(row) <= column]:
        raise UserError(f"{old_table}, line {short[0]}: no field in column 'path'; correct it.")
    old_order = [Path(row[column]).name for row in rows]
    return write_subset(by_row_number(corpus, read_row_numbers(numbers), old_order), path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8.") from None


def _checked_ids(table: pd.DataFrame) -> list[str]:
    ids = list(table["id"])
    for id_ in ids:
        if not id_ or "\n" in id_ or "\r" in id_:
            raise UserError(f"The id {id_!r} cannot stand on a line of its own: rename it.")
    if len(set(ids)) != len(ids):
        twice = table["id"][table["id"].duplicated()].iloc[0]
        raise UserError(f"The id {twice!r} stands twice in the subset: give every row its own.")
    return ids


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
