"""The file that says what a run's errors were under each forced routing, and what to read off it.

``<results>/gates/forced/<run_id>.json``: of each test set the clips, and of each case (see CASES)
the errors of every clip under both normalisers. All intervals and figures are made from it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distilwhisper_lib.config.settings import DOMAINS, NORMALIZERS, WITH_EXPERTS, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import LANGUAGE, Where, check, one_of, read_json
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.frame import HEADLINE, rate_of
from distilwhisper_lib.results.hypotheses import speaker_digest
from distilwhisper_lib.results.places import files_of
from distilwhisper_lib.results.significance import LEARNED, draws_of, few_blocks_note, mean_errors
from distilwhisper_lib.scoring.rates import METRICS, UtteranceErrors, utterance_errors
from distilwhisper_lib.scoring.resampling import (
    RESAMPLES,
    generator,
    holm,
    interval,
    resampled_rates,
    speaker_blocks,
    swap_p_value,
)

SCHEMA = 1
# Of all layers: both branches, weighed as in training; the expert everywhere; the shared network
# everywhere. Beside them a layer's name: its expert alone is off.
WHOLE = ("soft", "open", "closed")
# Each token at random, several draws: the expert gets the share that the learned gates give it in
# each layer, or in all layers of a side their mean, so that it is lost which layers lean on it.
DRAWN = {way: tuple(f"{way}.{draw}" for draw in (1, 2, 3)) for way in ("random", "even")}
CASES = re.compile(
    rf"{LEARNED}|{'|'.join(WHOLE)}|({'|'.join(DRAWN)})\.[123]|(encoder|decoder)\.[1-9]\d{{0,2}}"
)

ForcedGates = dict[str, Any]
Row = Mapping[str, Any]
Scored = dict[str, dict[str, UtteranceErrors]]  # normaliser -> metric -> of all clips

_COUNT = Where(int, lambda count: 0 <= count < 2**31, "a whole number from 0 to 2147483647")
_COUNTS = {normalizer: {metric: [_COUNT] for metric in METRICS} for normalizer in NORMALIZERS}
_CASE = {
    "source": str,  # the run that said it, or "decoded" for this file
    "capped": int,
    "scores": {normalizer: {metric: float for metric in METRICS} for normalizer in NORMALIZERS},
    "errors": _COUNTS,
}
_DOMAIN = {
    "corpus": str,
    "precision": str,
    "ids": [str],
    "speakers": [str],
    "units": _COUNTS,
    "cases": {str: _CASE},
}
_FILE = {
    "schema": int,
    "run_id": str,
    "method": WITH_EXPERTS,
    "language": LANGUAGE,
    "seed": int,
    "weights_sha256": str,
    "domains": {str: _DOMAIN},
}


def forced_path(results: str | Path, run_id: str) -> Path:
    """Where a results folder keeps a run's file."""
    return Path(results) / "gates" / "forced" / f"{run_id}.json"


# Made -----------------------------------------------------------------------------------------


def count_clips(rows: Sequence[Row], language: str) -> dict[str, Any]:
    """What is the same in every case: ids, speakers as blocks and not by name, and units."""
    speakers = [speaker_digest(row["speaker"]) for row in rows]
    units = _counts(_scored(rows, language), "units")
    return {"ids": [row["id"] for row in rows], "speakers": speakers, "units": units}


def count_case(rows: Sequence[Row], language: str, source: str = "decoded") -> dict[str, Any]:
    """One case of the rows that transcribe() returns."""
    scored = _scored(rows, language)
    errors, units = (_counts(scored, what) for what in ("errors", "units"))
    return {
        "source": source,
        "capped": sum(bool(row["capped"]) for row in rows),
        "scores": {
            normalizer: {m: sum(errors[normalizer][m]) / sum(units[normalizer][m]) for m in METRICS}
            for normalizer in NORMALIZERS
        },
        "errors": errors,
    }


def _scored(rows: Sequence[Row], language: str) -> Scored:
    return {n: {m: utterance_errors(rows, language, n, m) for m in METRICS} for n in NORMALIZERS}


def _counts(scored: Scored, what: str) -> dict[str, dict[str, list[int]]]:
    """ "errors" or "units" of every clip."""
    return {n: {m: getattr(scored[n][m], what).tolist() for m in METRICS} for n in NORMALIZERS}


def missing_cases(domain: Mapping[str, Any], wanted: Iterable[str]) -> list[str]:
    """Of the wanted cases those that a test set's part of the file lacks."""
    return [name for name in wanted if name not in domain["cases"]]


def write_forced(path: Path, forced: ForcedGates) -> Path:
    """Check and write a file."""
    validate(forced, path)
    return write_atomic(path, json.dumps(forced, ensure_ascii=False, allow_nan=False) + "\n")


# Read -----------------------------------------------------------------------------------------


def read_forced(path: str | Path) -> ForcedGates:
    """Read and check one file; UserError names it and what is wrong with it."""
    path = Path(path)
    forced = read_json(
        path,
        f"no {path}: `distilwhisper_lib gates` writes it",
        "take it from version control, or remove it and run `distilwhisper_lib gates`",
    )
    validate(forced, path)
    if forced["run_id"] != path.stem:
        raise UserError(
            f"{path}: field 'run_id' is {forced['run_id']!r}, expected {path.stem!r} as the file "
            "is called: rename the file"
        )
    return forced


def load_forced(results: str | Path, records: Sequence[Record] | None = None) -> list[ForcedGates]:
    """Such files of a results folder, by run id; with ``records``, theirs, where they lie."""
    found = files_of("gates/forced", results, records)
    return [read_forced(path) | place for path, place in found]


def validate(forced: Any, source: str | Path) -> None:
    """Raise UserError unless ``forced`` is such a file, whole and consistent."""
    if not isinstance(forced, dict) or forced.get("schema") != SCHEMA:
        found = forced.get("schema") if isinstance(forced, dict) else None
        raise UserError(
            f"{source}: has schema {found!r}, expected {SCHEMA}: update the kit, or run "
            "`distilwhisper_lib gates` again"
        )
    check(forced, _FILE, source)
    for name, domain in forced["domains"].items():
        one_of(f"domain in {source}", name, tuple(DOMAINS))
        if LEARNED not in domain["cases"] or not domain["ids"]:
            raise UserError(f"{source}: {name!r} has no clips with learned gates: make it again")
        for case in domain["cases"]:
            if not CASES.fullmatch(case):
                raise UserError(
                    f"{source}: {case[:60]!r} is no case of forced gates: make it again"
                )
        _check_counts(domain, f"{source}: {name!r}")


def _check_counts(domain: Mapping[str, Any], where: str) -> None:
    clips = len(domain["ids"])
    parts = [domain["units"], *(case["errors"] for case in domain["cases"].values())]
    counts = [part[n][m] for part in parts for n in NORMALIZERS for m in METRICS]
    if any(len(numbers) != clips for numbers in [domain["speakers"], *counts]):
        raise UserError(f"{where} has not one number for each of its {clips} clips: make it again")
    for normalizer in NORMALIZERS:
        for metric in METRICS:
            units = sum(domain["units"][normalizer][metric])
            for name, case in domain["cases"].items():
                again = sum(case["errors"][normalizer][metric]) / max(units, 1)
                said = case["scores"][normalizer][metric]
                if not units or not math.isclose(again, said, abs_tol=1e-9):
                    raise UserError(
                        f"{where}: {metric} of {name!r} under {normalizer!r} is {said}, but its "
                        f"clips give {again:.4f}: make it again"
                    )


# What it says ---------------------------------------------------------------------------------


def differences(
    forced: ForcedGates,
    domain: str = "in_domain",
    metric: str = HEADLINE,
    normalizer: str = "marks",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """One row a case, those of all layers first, then layer by layer as signals flow; the draws of
    random gates are one, each clip's errors the mean over them.

    error and, against the learned gates, difference, low, high (95 %) in points, above 0 where
    forcing makes it worse; p, "p (Holm)" for all cases together; clips, blocks, "blocked on",
    note, as in significance. Whole speakers are drawn, and all cases on the same draws. The frame's
    index is the case; ``attrs["metric"]`` the rate. Empty where the file has not that domain.
    """
    one_of("domain", domain, tuple(DOMAINS))
    one_of("metric", metric, (HEADLINE, *METRICS))
    one_of("normalizer", normalizer, NORMALIZERS)
    rate, found = rate_of(metric, forced["language"]), forced["domains"].get(domain)
    names = rows_of(found["cases"]) if found else []
    rows = []
    if found:
        cases = found["cases"]
        errors = [mean_errors(cases, draws_of(cases, name), normalizer, rate) for name in names]
        units = np.array(found["units"][normalizer][rate])
        blocks = speaker_blocks(found["speakers"])
        place = domain, forced["language"]
        rates = resampled_rates(
            np.column_stack(errors), units, blocks, resamples, generator(seed, *place)
        )
        learned = names.index(LEARNED)
        few = few_blocks_note(blocks.count, blocks.count, paired=True)
        about = {"clips": int((units > 0).sum()), "blocks": blocks.count, "blocked on": blocks.kind}
        for column, counts in enumerate(errors):
            low, high = interval(rates[:, column] - rates[:, learned])
            changes = counts - errors[learned]
            parts = np.bincount(blocks.of_utterance, changes, blocks.count)
            random = generator(seed, "swap", *place)
            apart = changes.sum() / units.sum()
            row = {"error": counts.sum() / units.sum(), "difference": apart, "low": low}
            row = {name: 100 * value for name, value in (row | {"high": high}).items()}
            p = math.nan if column == learned else swap_p_value(parts, resamples, random)
            rows.append(row | {"p": p, "p (Holm)": math.nan} | about | {"note": few})
    table = pd.DataFrame(rows, pd.Index(names, name="gates"), _COLUMNS)
    table["p (Holm)"] = holm(list(table["p"]))
    table.attrs = {"metric": rate, "normalizer": normalizer, "domain": domain}
    return table


_COLUMNS = ["error", "difference", "low", "high", "p", "p (Holm)", "clips", "blocks",
            "blocked on", "note"]  # fmt: skip


def rows_of(cases: Iterable[str]) -> list[str]:
    """The rows of differences() for these cases, in their order."""
    drawn = {name: way for way, names in DRAWN.items() for name in names}
    return sorted({drawn.get(case, case) for case in cases}, key=_place)


def _place(row: str) -> tuple[int, int]:
    side, _, layer = row.partition(".")
    return (LEARNED, *WHOLE, *DRAWN, "encoder", "decoder").index(side), int(layer or 0)
