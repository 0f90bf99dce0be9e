"""Which differences between systems are more than the luck of the test set.

Built on published hypotheses (`hypotheses`): intervals are a bootstrap's (`bootstrap`), p-values a
paired permutation test's (`permutation`), both of whole speakers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from distilwhisper_lib.config.settings import DOMAINS, LABELS, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.frame import AVERAGE, HEADLINE, averaged, rated, row_place
from distilwhisper_lib.results.hypotheses import Hypotheses, Row, same_clips
from distilwhisper_lib.scoring.resampling import (
    FEW_BLOCKS,
    RESAMPLES,
    generator,
    holm,
    interval,
    least_p_value,
    resampled_rates,
    speaker_blocks,
    swap_p_value,
)

NO_HYPOTHESES = "no hypotheses published"
OTHER_CLIPS = "not the same clips"
LEARNED = "learned"  # gates as a run was tested with them
# Said of a row whose runs were heard again with their gates forced so: both branches weighed; the
# expert everywhere; at random, the learned share in each layer, or the same in all of a side.
FORCED = {
    "soft": "soft gates",
    "open": "always open",
    "random": "random gates",
    "even": "evenly random gates",
}
# What the paper asks: is distillation better than its rivals, are experts better than LoRA, and is
# anything better than nothing?
COMPARISONS = (
    ("js", "zero_shot"),
    ("js", "clsr"),
    ("js", "kl"),
    ("js", "lora"),
    ("js", "full"),
    ("kl", "clsr"),
    ("kl", "lora"),
    ("clsr", "lora"),
    ("clsr", "zero_shot"),
    ("lora", "zero_shot"),
    ("full", "lora"),
    ("full", "zero_shot"),
)


@dataclass(frozen=True)
class CellErrors:
    """One system's rates on one test set: its value and those of the resampled test sets."""

    rate: float
    rates: np.ndarray  # (resamples,)
    parts: np.ndarray  # (blocks,) what each block adds to the rate
    clips: int
    blocks: int
    fewest: int  # of an average: the blocks of the language that has the fewest
    kind: str
    group: tuple[int, ...]  # cells of one group heard the same clips and share their draws


# (system, domain, language) of one training size -> errors, or why there are none
Found = dict[tuple[str, str, str], CellErrors | str]


@dataclass(frozen=True)
class Resampled:
    """All cells of some records, resampled once; `intervals` and `differences` read them off."""

    found: Mapping[str, Found]  # by training size
    metric: str
    normalizer: str
    draws: int
    seed: int

    def intervals(self) -> pd.DataFrame:
        """One row per training size, system, domain and language (or average).

        error, low, high in per cent (95 %), clips, blocks, "blocked on", note. Several seeds
        count as the mean of their errors: the interval tells of the test set, not of training.
        """
        rows = []
        for title, found in self.found.items():
            for (system, domain, language), cell in found.items():
                row = {"training": title, "system": system, "domain": domain, "language": language}
                rows.append(row | _described(cell, "error"))
        return pd.DataFrame(rows, columns=_INTERVAL_COLUMNS)

    def differences(self, comparisons: Sequence[tuple[str, str]] = COMPARISONS) -> pd.DataFrame:
        """One row per training size, pair of systems, domain and language (or average).

        ``comparisons`` are pairs of methods or of row names, (system, against). difference, low,
        high in points (negative: the system is better), p (`permutation.swap_p_value`), and
        "p (Holm)": p adjusted for all pairs of the same test set. Both systems are drawn with the
        same speakers, and swapped speaker by speaker.
        """
        rows = []
        for title, found in self.found.items():
            columns = dict.fromkeys((domain, language) for _, domain, language in found)
            for domain, language in columns:
                tests = []
                for pair in comparisons:
                    system, against = (LABELS.get(name, name) for name in pair)
                    cells = [found.get((name, domain, language)) for name in (system, against)]
                    if None in cells:
                        continue  # not run: nothing to compare
                    row = {"training": title, "system": system, "against": against}
                    row |= {"domain": domain, "language": language}
                    tests.append(row | self._compare(*cells, (domain, language)))
                adjusted = holm([test["p"] for test in tests])
                rows += [t | {"p (Holm)": p} for t, p in zip(tests, adjusted, strict=True)]
        return pd.DataFrame(rows, columns=_DIFFERENCE_COLUMNS)

    def _compare(
        self, system: CellErrors | str, against: CellErrors | str, place: tuple[str, str]
    ) -> dict[str, Any]:
        nothing = {"difference": math.nan, "low": math.nan, "high": math.nan, "p": math.nan}
        for cell in (system, against):
            if isinstance(cell, str):
                return nothing | {"note": cell}
        if system.group != against.group:
            return nothing | {"note": OTHER_CLIPS}
        low, high = interval(system.rates - against.rates)
        random = generator(self.seed, "swap", *place)
        return {
            "difference": 100 * (system.rate - against.rate),
            "low": 100 * low,
            "high": 100 * high,
            "p": swap_p_value(system.parts - against.parts, self.draws, random),
        } | _bookkeeping(system, paired=True)


_BOOKKEEPING = ["clips", "blocks", "blocked on", "note"]
_PLACE = ["domain", "language"]
_INTERVAL_COLUMNS = ["training", "system", *_PLACE, "error", "low", "high", *_BOOKKEEPING]
_DIFFERENCE_COLUMNS = [
    *("training", "system", "against", *_PLACE, "difference", "low", "high", "p", "p (Holm)"),
    *_BOOKKEEPING,
]


def resample(
    records: Sequence[Record],
    folder: str | Path | Hypotheses,
    metric: str = HEADLINE,
    normalizer: str = "marks",
    *,
    forced: Iterable[Mapping[str, Any]] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Resample every test set of the records, whose hypotheses lie in the results ``folder``.

    A run without published hypotheses is told so in the tables. ``forced``, files of forced gates:
    where all runs of a system were heard with gates forced in one of the ways of FORCED on all
    clips of a test set, it stands there once more, as `forced_row` names it; several draws of
    random gates count as the mean of their errors. The same seed gives the same numbers, whatever
    other records there are. Raises UserError for an unknown name, a damaged file of hypotheses,
    and fewer than 100 resamples.
    """
    shown = rated(records, metric, normalizer)
    if resamples < 100:
        raise UserError(f"resamples={resamples} is too few for a 95 % interval: expected >= 100")
    published, files = Hypotheses.of(folder), {file["run_id"]: file for file in forced}
    found = {
        title: _resample_block(_listen(block, published, files), metric, resamples, seed)
        for title, block in shown.groupby("training", sort=False)
    }
    return Resampled(found, metric, normalizer, resamples, seed)


def forced_row(row: str, way: str = "soft") -> str:
    """What a row's runs are called where their gates are forced at test in a way of FORCED."""
    name, _, changed = row.partition(" (")
    return f"{name} ({FORCED[way]}{', ' + changed if changed else ')'}"


def draws_of(cases: Iterable[str], way: str) -> list[str]:
    """Of a file's cases those of one way: itself, or "random.1" and so on."""
    return [case for case in cases if case == way or case.startswith(f"{way}.")]


def mean_errors(
    cases: Mapping[str, Mapping[str, Any]], names: Sequence[str], normalizer: str, metric: str
) -> np.ndarray:
    """(N,) each clip's errors, the mean over cases of a file of forced gates."""
    return np.mean([cases[name]["errors"][normalizer][metric] for name in names], axis=0)


class _Heard(NamedTuple):
    """One run on one test set, clip by clip."""

    clips: list[Row] | None  # None where no hypotheses are published
    errors: np.ndarray | None
    units: np.ndarray | None
    scored: np.ndarray | None


# (domain, language) -> system -> its runs
Listened = dict[tuple[str, str], dict[str, list[_Heard]]]


def _listen(
    block: pd.DataFrame, published: Hypotheses, files: Mapping[str, Mapping[str, Any]]
) -> Listened:
    cells: Listened = {}
    again: dict[str, Listened] = {way: {} for way in FORCED}
    for row in block.itertuples():
        place, said = (row.domain, row.language), (row.record, row.evaluation)
        found = published.errors(*said, row.normalizer, row.metric)
        heard = _Heard(None, None, None, None)
        if found is not None:
            heard = _Heard(published.rows(*said), found.errors, found.units, found.scored)
        cells.setdefault(place, {}).setdefault(row.system, []).append(heard)
        cases = forced_cases(files.get(row.record["run_id"]), row.record, row.domain, heard.clips)
        for way in FORCED:
            if names := draws_of(cases, way):
                errors = mean_errors(cases, names, row.normalizer, row.metric)
                runs = again[way].setdefault(place, {}).setdefault(row.system, [])
                runs.append(heard._replace(errors=errors))
    for way, forced in again.items():
        for place, systems in forced.items():
            for label, runs in systems.items():
                if len(runs) == len(cells[place][label]):  # means over the same seeds
                    cells[place][forced_row(label, way)] = runs
    return cells


def forced_cases(
    forced: Mapping[str, Any] | None, record: Record, domain: str, clips: Sequence[Row] | None
) -> Mapping[str, Any]:
    """The cases of a run's file by name; none unless its own weights heard all of these clips."""
    part = forced_part(forced, record, domain)
    all_clips = clips is not None and part["ids"] == [row["id"] for row in clips]
    return part["cases"] if all_clips else {}


def forced_part(forced: Mapping[str, Any] | None, record: Record, domain: str) -> Mapping[str, Any]:
    """A test set's part of a run's file; an empty one unless the run's own weights were heard."""
    found = (forced or {"domains": {}})["domains"].get(domain)
    if found and forced["weights_sha256"] == record["training"]["weights_sha256"]:
        return found
    return {"ids": [], "cases": {}}


def _resample_block(listened: Listened, metric: str, resamples: int, seed: int) -> Found:
    found: Found = {}
    systems = sorted({s for cell in listened.values() for s in cell}, key=row_place)
    for domain in DOMAINS:
        languages = sorted(language for d, language in listened if d == domain)
        for language in languages:
            place = seed, domain, language
            cell = _resample_cell(listened[domain, language], resamples, place)
            found |= {(s, domain, language): cell[s] for s in systems if s in cell}
        counted = averaged(languages, metric)
        for system in systems:
            cells = [found.get((system, domain, language)) for language in counted]
            if cells and None not in cells:  # as in the table: only where all languages ran
                found[system, domain, AVERAGE] = _average(cells)
    return found


def _resample_cell(
    systems: Mapping[str, Sequence[_Heard]], resamples: int, place: tuple[int, str, str]
) -> dict[str, CellErrors | str]:
    """All systems of one test set. Those that heard the same clips share their draws."""
    cells: dict[str, CellErrors | str] = {}
    groups: list[dict[str, Sequence[_Heard]]] = []
    for system, runs in systems.items():
        clips = runs[0].clips
        if any(run.clips is None for run in runs):
            cells[system] = NO_HYPOTHESES
        elif not all(same_clips(clips, run.clips) for run in runs[1:]):
            cells[system] = f"seeds: {OTHER_CLIPS}"
        else:
            heard = (g for g in groups if same_clips(next(iter(g.values()))[0].clips, clips))
            group = next(heard, None)
            if group is None:
                groups.append(group := {})
            group[system] = runs
    for number, group in enumerate(groups):
        # Several seeds: the mean of their errors. The references, and so the units, are the same.
        errors = [np.mean([run.errors for run in runs], axis=0) for runs in group.values()]
        any_run = next(iter(group.values()))[0]
        drawn = speaker_blocks([row["speaker"] for row in any_run.clips])
        rates = resampled_rates(
            np.column_stack(errors), any_run.units, drawn, resamples, generator(*place)
        )
        units = any_run.units.sum()
        for column, system in enumerate(group):
            cells[system] = CellErrors(
                errors[column].sum() / units, rates[:, column],
                np.bincount(drawn.of_utterance, errors[column], drawn.count) / units,
                int(any_run.scored.sum()), drawn.count, drawn.count, drawn.kind, (number,),
            )  # fmt: skip
    return cells


def _average(cells: Sequence[CellErrors | str]) -> CellErrors | str:
    """The mean over languages; each was drawn on its own, as their test sets are."""
    if missing := [cell for cell in cells if isinstance(cell, str)]:
        return missing[0]
    return CellErrors(
        float(np.mean([cell.rate for cell in cells])),
        np.mean([cell.rates for cell in cells], axis=0),
        np.concatenate([cell.parts for cell in cells]) / len(cells),
        sum(cell.clips for cell in cells),
        sum(cell.blocks for cell in cells),
        min(cell.fewest for cell in cells),
        " / ".join(dict.fromkeys(cell.kind for cell in cells)),
        tuple(number for cell in cells for number in cell.group),
    )


def _described(cell: CellErrors | str, name: str) -> dict[str, Any]:
    if isinstance(cell, str):
        return {name: math.nan, "low": math.nan, "high": math.nan, "note": cell}
    low, high = interval(cell.rates)
    return {name: 100 * cell.rate, "low": 100 * low, "high": 100 * high} | _bookkeeping(cell)


def _bookkeeping(cell: CellErrors, paired: bool = False) -> dict[str, Any]:
    few = few_blocks_note(cell.fewest, cell.blocks, paired)
    return {"clips": cell.clips, "blocks": cell.blocks, "blocked on": cell.kind, "note": few}


def few_blocks_note(fewest: int, blocks: int, paired: bool = False) -> str:
    """What to know of an interval, and of a paired test's p, over few blocks; else nothing."""
    if fewest >= FEW_BLOCKS:
        return ""
    note = f"{fewest} blocks only: {'interval ' * paired}too narrow"
    least = least_p_value(blocks)
    return note + (f", p at least {least:.2g}" if paired and least > 0.001 else "")
