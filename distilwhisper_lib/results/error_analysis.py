"""What kind of errors a system makes, and where: from records and published hypotheses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distilwhisper_lib.config.settings import LABELS, NORMALIZERS, Record
from distilwhisper_lib.results.frame import HEADLINE, PLACE, RATES, rate_of, rated
from distilwhisper_lib.results.hypotheses import Hypotheses, Row
from distilwhisper_lib.results.significance import NO_HYPOTHESES
from distilwhisper_lib.scoring.rates import COUNTS
from distilwhisper_lib.scoring.text import normalize

# What a loop is, as tables and pages tell it.
TIMES, CHARACTERS = 4, 12
LOOP_RULE = (
    f"the same text, a letter or a sentence, {TIMES} times or more in a row and {CHARACTERS} "
    "characters or more in all; text without a letter, such as a number, does not count"
)
# A speaker this much faster than nearly all of the test set is not believed.
_PACE_QUANTILE, _PACE_FACTOR = 0.99, 1.5


def _place(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in PLACE}


def error_kinds(
    records: Sequence[Record], metric: str = HEADLINE, normalizer: str = "marks"
) -> pd.DataFrame:
    """Substitutions, deletions and insertions in per cent of the references, per evaluation."""
    shown = rated(records, metric, normalizer)
    units = shown["hits"] + shown["substitutions"] + shown["deletions"]
    shares = {kind: 100 * shown[kind] / units for kind in COUNTS[:3]}
    return shown[[*PLACE, "metric", "error"]].assign(**shares).reset_index(drop=True)


def normalizers_side_by_side(records: Sequence[Record]) -> pd.DataFrame:
    """WER and CER in per cent under every named normaliser, per evaluation.

    Where two normalisers differ, it is spelling that differs and not hearing: Whisper's rule drops
    the vowel signs of Tamil and the tone marks of Thai, and counts Thai letter by letter.
    """
    table = rated(records)[PLACE].reset_index(drop=True)
    for metric in RATES:
        for name in NORMALIZERS:
            table[f"{metric.upper()} {name}"] = rated(records, metric, name)["error"].to_numpy()
    return table


# -------------------------------------------------------------------------------- hallucination


def loops(text: str) -> bool:
    """Whether `LOOP_RULE` holds of some stretch of the text: a unit of any length that has a letter
    in it stands TIMES times in a row, or as often as CHARACTERS take."""
    text = f"{text} "  # the last of "no no no no" has no space of its own
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    for unit in range(1, len(codes) // TIMES + 1):
        same = codes[unit:] == codes[:-unit]  # as what stands a unit later
        needed = unit * (max(TIMES, -(-CHARACTERS // unit)) - 1)
        if np.count_nonzero(same) < needed:
            continue
        edges = np.flatnonzero(np.diff(same, prepend=False, append=False))
        for start, end in edges.reshape(-1, 2):
            if end - start >= needed and any(map(str.isalpha, text[start : start + unit])):
                return True
    return False


def fastest_pace(rows: Sequence[Row]) -> float:
    """Characters per second that the audio of a test set allows, from its own references.

    Half as much again as the 99th percentile of the references. Characters, not tokens: the
    bound is then the same for every system, and fair to scripts that cost many tokens.
    """
    paces = [len(row["reference"]) / row["seconds"] for row in rows if row["seconds"] > 0]
    return _PACE_FACTOR * float(np.quantile(paces, _PACE_QUANTILE)) if paces else math.inf


def hallucinations(
    records: Sequence[Record], folder: str | Path | Hypotheses, bound: float | None = None
) -> pd.DataFrame:
    """Outputs that are no transcript of anything, in per cent of the clips, per evaluation.

    "loops": clips of which `LOOP_RULE` holds, and not of their reference; "too long": more
    characters per second than ``bound`` (without it `fastest_pace`), which the table states;
    "cut": ended by the token limit; "empty".
    """
    table, published = [], Hypotheses.of(folder)
    for said in rated(records).to_dict("records"):
        rows = published.rows(said["record"], said["evaluation"])
        if rows is None:
            table.append(_place(said) | {"note": NO_HYPOTHESES})
            continue
        allowed = fastest_pace(rows) if bound is None else bound
        signs = {
            "loops": [loops(r["hypothesis"]) and not loops(r["reference"]) for r in rows],
            "too long": [len(r["hypothesis"]) > allowed * r["seconds"] for r in rows],
            "cut": [row["capped"] for row in rows],
            "empty": [not row["hypothesis"].strip() for row in rows],
        }
        shares = {name: 100 * float(np.mean(found)) for name, found in signs.items()}
        bounds = {"bound (characters/s)": allowed, "clips": len(rows), "note": ""}
        table.append(_place(said) | shares | bounds)
    return pd.DataFrame(table)


# --------------------------------------------------------------------------------------- length


def error_by_length(
    records: Sequence[Record],
    folder: str | Path | Hypotheses,
    metric: str = HEADLINE,
    normalizer: str = "marks",
    bins: int = 5,
) -> pd.DataFrame:
    """Error rate in per cent by clip length, per training size, system, domain and language.

    The ``bins`` hold about as many clips each and are the same for all systems of a test set:
    "from" and "to" in seconds. Runs without published hypotheses are left out.
    """
    table, published = [], Hypotheses.of(folder)
    for said in rated(records, metric, normalizer).to_dict("records"):
        rows = published.rows(said["record"], said["evaluation"])
        if rows is None:
            continue
        scored = published.errors(said["record"], said["evaluation"], normalizer, said["metric"])
        seconds = np.array([row["seconds"] for row in rows])
        edges = np.unique(np.quantile(seconds, np.linspace(0, 1, bins + 1)))
        edges = edges if len(edges) > 1 else np.array([edges[0], edges[0]])
        which = np.clip(np.searchsorted(edges, seconds, side="right") - 1, 0, len(edges) - 2)
        for place in range(len(edges) - 1):
            inside = which == place
            units = scored.units[inside].sum()
            table.append(
                _place(said)
                | {"from": edges[place], "to": edges[place + 1], "clips": int(inside.sum())}
                | {"error": 100 * scored.errors[inside].sum() / units if units else math.nan}
            )
    return pd.DataFrame(table)


# --------------------------------------------------------------------------------------- worst


def worst_utterances(
    records: Sequence[Record],
    folder: str | Path | Hypotheses,
    language: str,
    method: str = "js",
    domain: str = "in_domain",
    count: int = 10,
    normalizer: str = "marks",
) -> pd.DataFrame:
    """The utterances of one system that cost it most errors, worst first.

    Columns id, seconds, errors, "error (%)", reference and hypothesis as normalised; `alignment`
    shows such a table. Empty, with a sentence in ``attrs["note"]``, where nothing is published.
    """
    system, metric = LABELS.get(method, method), rate_of(HEADLINE, language)
    columns = ["id", "seconds", "errors", "error (%)", "reference", "hypothesis"]
    place = {"system": system, "language": language, "domain": domain}
    published = Hypotheses.of(folder)
    matching = [s for s in rated(records).to_dict("records") if place.items() <= _place(s).items()]
    found = ((s["record"], s["evaluation"]) for s in matching)
    shown = next((pair for pair in found if published.rows(*pair)), None)
    if shown is None:
        empty = pd.DataFrame(columns=columns)
        empty.attrs = place | {"metric": metric, "note": NO_HYPOTHESES if matching else "not run"}
        return empty
    rows = published.rows(*shown)
    scored = published.errors(*shown, normalizer, metric)
    table = pd.DataFrame(
        {
            "id": [row["id"] for row in rows],
            "seconds": [row["seconds"] for row in rows],
            "errors": scored.errors,
            "error (%)": 100 * scored.errors / np.maximum(scored.units, 1),
            "reference": [normalize(row["reference"], normalizer) for row in rows],
            "hypothesis": [normalize(row["hypothesis"], normalizer) for row in rows],
        }
    )
    worst = table[table["errors"] > 0].sort_values(
        ["errors", "error (%)", "id"], ascending=[False, False, True], ignore_index=True
    )[:count]
    worst.attrs = place | {"metric": metric, "note": ""}
    return worst
