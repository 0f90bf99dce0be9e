"""The paper's own numbers beside ours, where somebody has filled them in.

``results/published.csv`` ships with its heading only: the columns system (a method such as "js",
or its row's name), train_size (empty: any), corpus, language, wer (per cent, as printed) and
source (where it stands). Nothing is filled in from memory.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import LABELS, TRAINED, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.results.exports import cell, stacked
from distilwhisper_lib.results.frame import AVERAGE, ROWS, blocks, row_place
from distilwhisper_lib.results.tables import NOT_RUN, column_place, results_table

PUBLISHED = "published.csv"  # in results/
COLUMNS = ("system", "train_size", "corpus", "language", "wer", "source")
NOT_FILLED = "not filled"
RULE = "whisper"  # the normaliser of the paper's code: the only one to compare under


@dataclass(frozen=True)
class Published:
    """One printed value: a WER in per cent under the paper's normaliser."""

    system: str  # the row's name
    train_size: int | None
    corpus: str
    language: str  # Whisper code or "average"
    wer: float
    source: str


def read_published_values(path: str | Path) -> list[Published]:
    """The rows of published.csv; none when there is no such file.

    Raises UserError naming line and column for whatever is not as described above.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(
            f"{path}: has the columns {', '.join(reader.fieldnames or ()) or 'none'}, expected "
            f"{', '.join(COLUMNS)}"
        )
    values = [_value(row, f"{path}: line {reader.line_num}") for row in reader]
    seen: set[tuple] = set()
    for value in values:
        key = (value.system, value.train_size, value.corpus, value.language)
        if key in seen:
            raise UserError(f"{path}: {' '.join(map(str, key))} stands twice, expected once")
        seen.add(key)
    return values


def _value(row: Mapping[str, str | None], where: str) -> Published:
    given = {name: (row.get(name) or "").strip() for name in COLUMNS}
    system = LABELS.get(given["system"], given["system"])
    if system not in ROWS:
        raise UserError(
            f"{where} has system {given['system']!r}, expected one of {', '.join(LABELS)}"
        )
    for name in ("corpus", "source"):
        if not given[name]:
            raise UserError(f"{where} has no {name}, expected where the number is from")
    language = given["language"]
    try:
        size = int(given["train_size"]) if given["train_size"] else None
        wer = float(given["wer"])
        if not (math.isfinite(wer) and wer >= 0 and (size is None or size > 0)):
            raise ValueError
        if language != AVERAGE:
            language = find_language(language).code
    except (ValueError, UserError):
        raise UserError(
            f"{where} has train_size {given['train_size']!r}, language {language!r} and wer "
            f"{given['wer']!r}, expected a whole number or nothing, a language or {AVERAGE!r}, and "
            "per cent"
        ) from None
    return Published(system, size, given["corpus"], language, wer, given["source"])


def compared(records: Sequence[Record], values: Sequence[Published]) -> pd.DataFrame:
    """Ours, the published value and the difference, as text, per (domain, language).

    WER under the paper's normaliser. The columns have a third level for the three. A value stands
    beside cells of its own corpus only; a cell that was not run has the corpus of its column. A
    row without either is left out.
    """
    return stacked({title: _beside(group, values) for title, group in blocks(records).items()})


def _beside(records: Sequence[Record], values: Sequence[Published]) -> pd.DataFrame:
    trained = [r for r in records if r["config"]["method"] in TRAINED] or records
    size = trained[0]["config"].get("train_size")
    found = {(v.system, v.corpus, v.language): v for v in values if v.train_size in (None, size)}
    # A value for this very size goes before one for any.
    found |= {(v.system, v.corpus, v.language): v for v in values if v.train_size == size}
    cells = results_table(records, "wer", RULE)
    run = {(c.system, c.domain, c.language): c for c in cells.itertuples()}
    of_column = cells.groupby(["domain", "language"])["corpora"].sum()
    columns = sorted(of_column.index, key=column_place)
    rows = {}
    for system in sorted({*cells["system"], *(v.system for v in values)}, key=row_place):
        ours = {column: run.get((system, *column)) for column in columns}
        theirs = {}
        for column, own in ours.items():
            # A cell of several corpora stands beside the value of none.
            families = {_family(corpus) for corpus in (own.corpora if own else of_column[column])}
            corpus = families.pop() if len(families) == 1 else None
            theirs[column] = found.get((system, corpus, column[1]))
        if any(ours.values()) or any(theirs.values()):
            rows[system] = [t for c in columns for t in _texts(ours[c], theirs[c])]
    kinds = [(*column, kind) for column in columns for kind in ("ours", "published", "difference")]
    heads = pd.MultiIndex.from_tuples(kinds, names=["domain", "language", ""])
    return pd.DataFrame(rows.values(), pd.Index(rows, name="system"), heads)


def _texts(ours: Any, theirs: Published | None) -> tuple[str, str, str]:
    """A cell of ours, the published value and their difference."""
    return (
        cell(ours.error, ours.sd) if ours else NOT_RUN,
        f"{theirs.wer:.1f}" if theirs else NOT_FILLED,
        f"{ours.error - theirs.wer:+.1f}" if ours and theirs else "",
    )


def _family(corpus: str) -> str:
    """ "fleurs/raw_transcription@main" is FLEURS; a folder is itself."""
    return corpus if corpus.startswith("folder/") else corpus.partition("/")[0].partition("@")[0]
