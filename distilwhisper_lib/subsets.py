"""Which utterances a run uses: the paper's selection rule, the length filter, the leakage check.

A chosen subset is written as a list of ids, so that anyone with the corpus can rebuild it: row
numbers died with the data set they counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .errors import UserError
from .files import write_atomic
from .text import normalize_marks

_HEADER = "# sha256 "


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

    Whisper would cut a longer clip and still be told its whole text.
    """
    if not max_seconds > 0:
        raise UserError(f"max_seconds is {max_seconds!r}: give seconds above 0.")
    fits = table["seconds"] <= max_seconds
    return table[fits].reset_index(drop=True), table[~fits].reset_index(drop=True)


def check_disjoint(splits: Mapping[str, pd.DataFrame]) -> list[Leak]:
    """Sentences and ids that two or more of the named tables share; empty when all is well.

    Sentences are compared after the mark-preserving normaliser, so that a change of case or
    punctuation does not hide one. Sorted by kind and value.
    """
    places: dict[tuple[str, str], set[str]] = {}
    for split, table in splits.items():
        for text in table["text"]:
            places.setdefault(("text", normalize_marks(text)), set()).add(split)
        for id_ in table["id"]:
            places.setdefault(("id", id_), set()).add(split)
    shared = sorted((key, found) for key, found in places.items() if len(found) > 1)
    return [Leak(kind, value, tuple(sorted(found))) for (kind, value), found in shared]


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
    header, _, body = path.read_text(encoding="utf-8").partition("\n")
    if header != f"{_HEADER}{_sha256(body)}":
        raise UserError(
            f"Subset file {path} does not match the SHA-256 on its first line: "
            "restore it or write it again."
        )
    return body.split("\n")[:-1]


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
