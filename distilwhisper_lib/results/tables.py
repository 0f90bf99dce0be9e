"""The paper's table layout, filled from run records and nothing else.

One row a cell: system, domain and language (or average) of each training size. `exports` writes
the cells as tables, `published` sets the paper's values beside them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from distilwhisper_lib.config.changes import named
from distilwhisper_lib.config.settings import DOMAINS, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.frame import (
    AVERAGE,
    HEADLINE,
    RATES,
    averaged,
    blocks,
    rate_of,
    rated,
    row_labels,
    row_place,
    shared_settings,
)

NOT_RUN = "not run"

_CELL = ["training", "system", "domain", "language"]
_COLUMNS = [*_CELL, "rate", "error", "sd", "seeds", "corpora"]


def results_table(
    records: Sequence[Record], metric: str = HEADLINE, normalizer: str = "marks"
) -> pd.DataFrame:
    """Error rates in percent, one row per training size, system, domain and language that ran.

    ``metric``: "wer", "cer" or, by default, "headline": WER, but CER for languages that are
    written without spaces, which then are called so, ``"th (CER)"``. "rate" says which it is.

    Systems stand in the paper's order, and small training sizes first. "error" is the mean over
    "seeds", "sd" their sample standard deviation, "corpora" what the cell was scored on. Each
    domain ends with an ``average`` for the systems that have all of the languages that it
    averages; where others have a CER, that is ``average (WER)``. An average is the mean of the
    cells that stand beside it; its deviation and seeds are those of the seeds that ran in every
    language. Runs of one method with different settings get rows of their own, which name the
    settings that differ. UserError for an unknown name, and a run given twice.
    """
    shown = rated(records, metric, normalizer)
    for again in shown[shown.duplicated([*_CELL, "seed"])].itertuples():
        raise UserError(
            f"run {again.record['run_id']} gives {again.system!r} a second {again.domain} result "
            f"for {again.language} with seed {again.seed}: pass each run once"
        )
    rows = []
    for _, block in shown.groupby("training", sort=False):
        cells = [c for _, domain in block.groupby("domain") for c in _cells(domain, metric)]
        rows += sorted(cells, key=lambda cell: row_place(cell["system"]))
    return pd.DataFrame(rows, columns=_COLUMNS)


def own_table(
    records: Sequence[Record], metric: str = HEADLINE, normalizer: str = "marks"
) -> pd.DataFrame:
    """`results_table` of one's own study: settings that all runs of a training size share stand in
    "training", once above their table, and in no row."""
    parts = []
    for title, group in blocks(records).items():
        shared = shared_settings(group)
        rows = zip(row_labels(group), row_labels(group, shared), strict=True)
        part = results_table(group, metric, normalizer)
        part["training"] = ", ".join([title, *named(shared)])
        part["system"] = part["system"].map(dict(rows))
        parts.append(part.sort_values("system", key=lambda s: s.map(row_place), kind="stable"))
    return pd.concat(parts, ignore_index=True) if parts else results_table(records)


def _cells(domain: pd.DataFrame, metric: str) -> Iterator[dict[str, Any]]:
    """The cells of one domain at one training size: every language, then the average."""
    languages = sorted(domain["language"].unique())
    counted = averaged(languages, metric)
    usual = "wer" if metric == HEADLINE else metric
    for (_, language), cell in domain.groupby(["system", "language"]):
        rate = rate_of(metric, language)
        name = language if rate == usual else f"{language} ({rate.upper()})"
        yield _cell(cell, name, cell["error"], statistics.fmean(cell["error"]))
    rate = rate_of(metric, counted[0])
    name = AVERAGE if rate == usual and counted == languages else f"{AVERAGE} ({rate.upper()})"
    for _, row in domain[domain["language"].isin(counted)].groupby("system"):
        seeds = row.pivot(index="seed", columns="language", values="error")
        if list(seeds.columns) == counted:
            mean = statistics.fmean(statistics.fmean(seeds[c].dropna()) for c in counted)
            of_seeds = [statistics.fmean(line) for line in seeds.dropna().to_numpy()]
            yield _cell(row, name, of_seeds, mean)


def _cell(runs: pd.DataFrame, name: str, of_seeds: Sequence[float], mean: float) -> dict[str, Any]:
    """``name`` is the language's or the average's, as the table calls it."""
    first = runs.iloc[0]
    return {
        "training": first["training"], "system": first["system"], "domain": first["domain"],
        "language": name, "rate": first["metric"], "error": mean,
        "sd": statistics.stdev(of_seeds) if len(of_seeds) > 1 else math.nan,
        "seeds": len(of_seeds), "corpora": tuple(sorted(runs["corpus"].unique())),
    }  # fmt: skip


def wide(cells: pd.DataFrame, values: str, row: str = "system") -> pd.DataFrame:
    """The values of one training size's cells: a row a system, a column a domain and language."""
    table = cells.pivot(index=row, columns=["domain", "language"], values=values)
    return table.loc[cells[row].unique(), sorted(table.columns, key=column_place)]


def column_place(column: tuple[str, ...]) -> tuple:
    """What columns are sorted by: domain, then language with the average last, then what is finer
    as it comes."""
    domain, language = column[:2]
    return list(DOMAINS).index(domain), language.startswith(AVERAGE), language


def title_of(cells: pd.DataFrame) -> str:
    """What the table shows: "WER", "CER" or "WER or CER"."""
    return " or ".join(rate.upper() for rate in RATES if rate in set(cells["rate"]))


def shown_metrics(records: Sequence[Record], normalizer: str) -> list[str]:
    """The metrics that a page shows one below the other, none of them twice.

    Whisper's rule sets the letters of unspaced scripts apart, which makes their WER, the rate
    that the paper compares, mean something.
    """
    rates = {rate_of(HEADLINE, record["config"]["language"]) for record in records}
    separate = normalizer == "whisper" and "cer" in rates
    return [HEADLINE, *["wer"] * separate, *["cer"] * (rates != {"cer"})]


def short_of_data(records: Sequence[Record]) -> list[str]:
    """ "<run id> (14 of 28,000 clips)" of each run that trained on fewer than its size says."""
    return sorted(
        f"{record['run_id']} ({train['clips']:,} of {size:,} clips)"
        for record in records
        if (train := record["data"]["train"])
        and (size := record["config"].get("train_size"))
        and train["clips"] < size
    )
