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

import pandas as pd

from distilwhisper_lib.config.settings import LABELS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.results.exports import cell, stacked
from distilwhisper_lib.results.tables import AVERAGE, NOT_RUN, Tables

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
    if system not in LABELS.values():
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


def compared(tables: Tables, values: Sequence[Published]) -> pd.DataFrame:
    """Ours, the published value and the difference, as text, per (domain, language).

    The columns have a third level for the three. A value stands beside cells of its own corpus
    only; a cell that was not run has the corpus of its column. A row without either is left out.
    Only WER tables under the paper's normaliser compare: UserError for others.
    """
    for table in tables.values():
        given = (table.attrs["metric"], table.attrs["normalizer"])
        if given != ("wer", RULE):
            raise UserError(
                f"a table of {given[0]} under {given[1]!r} does not compare with published values: "
                f"expected wer under {RULE!r}, the paper's rule"
            )
    return stacked({title: _beside(table, values) for title, table in tables.items()})


def _beside(table: pd.DataFrame, values: Sequence[Published]) -> pd.DataFrame:
    size, corpora, spread = (table.attrs[name] for name in ("train_size", "corpora", "sd"))
    found = {(v.system, v.corpus, v.language): v for v in values if v.train_size in (None, size)}
    # A value for this very size goes before one for any.
    found |= {(v.system, v.corpus, v.language): v for v in values if v.train_size == size}
    columns: dict[tuple[str, str, str], list[str]] = {}
    for domain, language in table.columns:
        for kind in ("ours", "published", "difference"):
            columns[domain, language, kind] = []
        for system in table.index:
            ours = table.loc[system, (domain, language)]
            # A cell of several corpora stands beside the value of none.
            families = {_family(corpus) for corpus in corpora[system][domain, language]}
            corpus = families.pop() if len(families) == 1 else None
            value = found.get((system, corpus, language))
            theirs = value.wer if value else math.nan
            sd = spread[system].get((domain, language), math.nan)
            columns[domain, language, "ours"].append(cell(ours, sd))
            columns[domain, language, "published"].append(f"{theirs:.1f}" if value else NOT_FILLED)
            known = not math.isnan(ours - theirs)
            columns[domain, language, "difference"].append(f"{ours - theirs:+.1f}" if known else "")
    frame = pd.DataFrame(columns, index=table.index)
    if not columns:
        return frame
    frame.columns = frame.columns.set_names(["domain", "language", ""])
    empty = frame.isin([NOT_RUN, NOT_FILLED, ""]).all(axis=1)
    return frame[~empty]


def _family(corpus: str) -> str:
    """ "fleurs/raw_transcription@main" is FLEURS; a folder is itself."""
    return corpus if corpus.startswith("folder/") else corpus.partition("/")[0].partition("@")[0]
