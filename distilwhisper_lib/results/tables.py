"""The paper's table layout, filled from run records and nothing else.

One table per training size (`Tables`), rows the systems in the paper's order, columns the
languages of each domain and their average. `exports` writes them, `published` sets the paper's
values beside them.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import (
    DOMAINS,
    LABELS,
    NORMALIZERS,
    TRAINED,
    Record,
    changed_settings,
)
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.languages import find_language

RATES = ("wer", "cer")
# The CER where words are not spaced, else the WER.
HEADLINE = "headline"
METRICS = (HEADLINE, *RATES)
AVERAGE = "average"
NOT_RUN = "not run"


Column = tuple[str, str]  # domain, language or AVERAGE
Tables = dict[str, pd.DataFrame]  # training size -> its table
# row label -> column -> seed -> percent
Cells = dict[str, dict[Column, dict[int, float]]]


def results_tables(
    records: Sequence[Record],
    metric: str = HEADLINE,
    normalizer: str = "marks",
    languages: Sequence[str] | None = None,
) -> Tables:
    """One `results_table` per training size, by its title; without records, one empty table."""
    groups = blocks(records) or {"no runs": []}
    return {
        title: results_table(group, metric, normalizer, languages)
        for title, group in groups.items()
    }


def results_table(
    records: Sequence[Record],
    metric: str = HEADLINE,
    normalizer: str = "marks",
    languages: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Error rates in percent: one row per system, one column per (domain, language).

    ``metric``: "wer", "cer" or, by default, "headline": WER, but CER for languages that are
    written without spaces, whose columns say so, ``"th (CER)"``. ``table.attrs["title"]`` names
    what the table shows.

    Rows stand in the paper's order, systems without a run included (NaN). ``languages`` are
    columns in any case; without it, those of the records are. Each domain ends with an
    ``average`` column, which is filled only where the row has all of the languages that it
    averages. Beside a CER column that is ``average (WER)``, of the other languages alone. A
    record counts for the language it was run for. Several seeds become their mean; their sample
    standard deviation is in ``table.attrs["sd"][row][(domain, language)]`` and the number of
    seeds in ``table.attrs["seeds"]``. An average is the mean of the cells that stand beside it;
    its deviation and seeds are those of the seeds that ran in every language.
    ``table.attrs["corpora"]`` has, by row and column, the corpora that the cell was scored on.
    Runs of one method with different settings get rows of their own, which name the settings that
    differ. UserError for an unknown name, records of
    several training sizes, and a run given twice.
    """
    one_of("metric", metric, METRICS)
    one_of("normalizer", normalizer, NORMALIZERS)
    if len(titles := list(blocks(records))) > 1:
        raise UserError(
            f"records of {len(titles)} training sizes ({'; '.join(titles)}), expected one a table: "
            "use results_tables"
        )
    cells = _collect(records, metric, normalizer)
    columns = _columns(cells, metric, languages)
    headings = _headings(columns, metric)
    rows = _rows(records)
    summary = {row: _summarise(cells.get(row, {}), columns) for row in rows}
    values = [[summary[row][column][0] for column in columns] for row in rows]
    index = pd.MultiIndex.from_arrays(
        [[domain for domain, _ in headings.values()], [name for _, name in headings.values()]],
        names=["domain", "language"],
    )
    table = pd.DataFrame(values, pd.Index(rows, name="system"), index, dtype=float)
    table.attrs = {
        "title": " or ".join(m.upper() for m in RATES if m in columns.values()),
        "metric": metric,
        "normalizer": normalizer,
        "sd": {row: {headings[c]: s[1] for c, s in line.items()} for row, line in summary.items()},
        "seeds": {
            row: {headings[c]: s[2] for c, s in line.items()} for row, line in summary.items()
        },
        "train_size": _train_size(records),
        "corpora": _corpora(records, rows, columns, headings),
    }
    return table


def _train_size(records: Sequence[Record]) -> int | None:
    """The one training size of a table's records; what trains nothing has none of its own."""
    trained = [r for r in records if r["config"]["method"] in TRAINED] or records
    return next((record["config"].get("train_size") for record in trained), None)


def short_of_data(records: Sequence[Record]) -> list[str]:
    """ "<run id> (14 of 28,000 clips)" of each run that trained on fewer than its size says."""
    return sorted(
        f"{record['run_id']} ({train['clips']:,} of {size:,} clips)"
        for record in records
        if (train := record["data"]["train"])
        and (size := record["config"].get("train_size"))
        and train["clips"] < size
    )


def title_of(tables: Tables) -> str:
    """What the tables show: "WER", "CER" or "WER or CER"."""
    shown = [table.attrs["title"] for table in tables.values()]
    return " or ".join(rate.upper() for rate in RATES if any(rate.upper() in t for t in shown))


def shown_metrics(records: Sequence[Record], normalizer: str) -> list[str]:
    """The metrics that a page shows one below the other, none of them twice.

    Whisper's rule sets the letters of unspaced scripts apart, which makes their WER, the rate
    that the paper compares, mean something.
    """
    rates = {rate_of(HEADLINE, record["config"]["language"]) for record in records}
    separate = normalizer == "whisper" and "cer" in rates
    return [HEADLINE, *["wer"] * separate, *["cer"] * (rates != {"cer"})]


def rate_of(metric: str, language: str) -> str:
    """The rate, "wer" or "cer", that a table of this metric shows for a language."""
    return find_language(language).headline if metric == HEADLINE else metric


def averaged(languages: Sequence[str], metric: str) -> list[str]:
    """The languages that an average is over. It is of one rate: the WER of those that show it,
    the CER where none does."""
    rates = {language: rate_of(metric, language) for language in languages}
    rate = "wer" if "wer" in rates.values() else "cer"
    return [language for language in languages if rates[language] == rate]


def blocks(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records by preset and training size, small sizes first, under the title of each block.

    A model that trains nothing is in every block that was trained from it, or by it, and tested on
    the same clips.
    """
    groups: dict[tuple[str, int | None], list[Record]] = defaultdict(list)
    for record in records:
        if record["config"]["method"] in TRAINED:
            groups[_block(record)].append(record)
    trained = {key: list(group) for key, group in groups.items()}
    for record in records:
        if record["config"]["method"] not in TRAINED:  # it stands beside all that it measures
            beside = [k for k, group in trained.items() if any(_alike(record, r) for r in group)]
            for key in beside or [_block(record)]:
                groups[key].append(record)
    order = sorted(groups, key=lambda key: (key[1] or math.inf, key[0]))
    return {_title(*key, groups[key]): groups[key] for key in order}


def _block(record: Record) -> tuple[str, int | None]:
    return record["preset"], record["config"].get("train_size")


def _alike(untrained: Record, trained: Record) -> bool:
    """Whether a model that trains nothing is the student or teacher of a run, on its test sets."""
    model = "teacher" if untrained["config"]["method"] == "teacher" else "student"
    same = all(
        untrained["config"].get(name) == trained["config"].get(name)
        for name in ("language", model, f"{model}_revision")
    )
    tests = [
        [(r["data"][part] or {}).get("sha256") for part in DOMAINS] for r in (untrained, trained)
    ]
    return same and tests[0] == tests[1]


def _title(preset: str, size: int | None, records: Sequence[Record]) -> str:
    if size is not None:
        return f"{preset}, {size:,} training clips"
    sizes = sorted({r["data"]["train"]["clips"] for r in records if r["data"]["train"]})
    if not sizes:
        return f"{preset}, all training clips"
    count = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"{preset}, all {count} training clips"


# --------------------------------------------------------------------------------------- cells


def own_evaluations(record: Record) -> list[dict[str, Any]]:
    """The record's evaluations in the language that it was run for."""
    language = record["config"]["language"]
    return [e for e in record["evaluations"] if e["language"] == language]


def _collect(records: Sequence[Record], metric: str, normalizer: str) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for record, label in zip(records, row_labels(records), strict=True):
        language, seed = record["config"]["language"], record["config"]["seed"]
        name = rate_of(metric, language)
        for evaluation in own_evaluations(record):
            seeds = cells[label][evaluation["domain"], language]
            if seed in seeds:
                raise UserError(
                    f"run {record['run_id']} gives {label!r} a second {evaluation['domain']} "
                    f"result for {language} with seed {seed}: pass each run once"
                )
            seeds[seed] = 100.0 * evaluation["scores"][normalizer][name][name]
    return cells


def _columns(cells: Cells, metric: str, languages: Sequence[str] | None) -> dict[Column, str]:
    """Every column in order, with the rate that it shows."""
    found = {column for row in cells.values() for column in row}
    found |= {(domain, language) for domain in DOMAINS for language in languages or ()}
    columns = {}
    for domain in DOMAINS:
        names = sorted(name for d, name in found if d == domain)
        columns |= {(domain, name): rate_of(metric, name) for name in names}
        if names:
            columns[domain, AVERAGE] = rate_of(metric, averaged(names, metric)[0])
    return columns


def _headings(columns: Mapping[Column, str], metric: str) -> dict[Column, Column]:
    """Each column as the table calls it: with its rate, where that is not the usual or only one."""
    usual = "wer" if metric == HEADLINE else metric
    headings = {}
    for (domain, name), rate in columns.items():
        alone = len({r for (d, _), r in columns.items() if d == domain}) == 1
        plain = rate == usual and (alone or name != AVERAGE)
        headings[domain, name] = (domain, name if plain else f"{name} ({rate.upper()})")
    return headings


def _summarise(
    row: Mapping[Column, dict[int, float]], columns: Mapping[Column, str]
) -> dict[Column, tuple[float, float, int]]:
    """(mean, standard deviation, seeds) per column; NaN where there is nothing to say."""
    summary = {column: _mean_sd(list(row.get(column, {}).values())) for column in columns}
    for average in columns:
        shown = _averaged_columns(average, columns)
        if shown and all(row.get(column) for column in shown):
            mean = statistics.fmean(summary[column][0] for column in shown)
            seeds = set.intersection(*(set(row[column]) for column in shown))
            of_seeds = [statistics.fmean(row[column][seed] for column in shown) for seed in seeds]
            summary[average] = (mean, *_mean_sd(of_seeds)[1:])
    return summary


def _averaged_columns(average: Column, columns: Mapping[Column, str]) -> list[Column]:
    """The columns that an average is over; none for a column of one language."""
    domain, name = average
    if name != AVERAGE:
        return []
    same = [column for column, rate in columns.items() if rate == columns[average]]
    return [column for column in same if column[0] == domain and column != average]


def _corpora(
    records: Sequence[Record],
    rows: Sequence[str],
    columns: Mapping[Column, str],
    headings: Mapping[Column, Column],
) -> dict[str, dict[Column, tuple[str, ...]]]:
    """The corpora of each cell, by row and heading; of a cell that was not run, its column's."""
    found: dict[str, dict[Column, set[str]]] = defaultdict(lambda: defaultdict(set))
    whole: dict[Column, set[str]] = defaultdict(set)
    for record, label in zip(records, row_labels(records), strict=True):
        for evaluation in own_evaluations(record):
            column = evaluation["domain"], evaluation["language"]
            found[label][column].add(evaluation["corpus"])
            whole[column].add(evaluation["corpus"])

    def of_cell(row: str, column: Column) -> tuple[str, ...]:
        parts = _averaged_columns(column, columns) or [column]
        return tuple(sorted(set().union(*(found[row].get(p) or whole[p] for p in parts))))

    return {row: {headings[column]: of_cell(row, column) for column in columns} for row in rows}


def _mean_sd(values: list[float]) -> tuple[float, float, int]:
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values)


# ---------------------------------------------------------------------------------------- rows


def _rows(records: Sequence[Record]) -> list[str]:
    """Every row of a table in order: all systems, each followed by its variants."""
    present: dict[str, set[str]] = defaultdict(set)
    for record, label in zip(records, row_labels(records), strict=True):
        present[record["config"]["method"]].add(label)
    rows = []
    for method, plain in LABELS.items():
        rows += [plain, *sorted(present[method] - {plain})]
    return rows


def row_place(row: str) -> tuple[int, str]:
    """What rows are sorted by: the paper's order of systems, each before its variants."""
    return list(LABELS.values()).index(row.partition(" (")[0]), row


def row_labels(records: Sequence[Record]) -> list[str]:
    """The row of each record; settings are named only where they differ from the preset's."""
    labels = []
    for record, changed in zip(records, changed_settings(records), strict=True):
        label = LABELS[record["config"]["method"]]
        told = ", ".join(f"{name}={value}" for name, value in changed.items())
        labels.append(f"{label} ({told})" if told else label)
    return labels
