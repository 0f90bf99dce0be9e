"""How far one's own runs are from the published ones of the same settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from distilwhisper_lib.config.settings import DOMAINS, Record
from distilwhisper_lib.results.frame import HEADLINE, own_evaluations, rate_of

POINTS = 0.5  # what the same run may differ by on another processor: sums round otherwise there
_NORMALIZER = "marks"

Rate = tuple[str, str]  # run id, domain


def compare_repeats(own: Sequence[Record], published: Sequence[Record]) -> str:
    """One line: the error rates of one's own runs beside those of the published runs of their ids.

    Such as "28 of 28 error rates within 0.5 points of the published ones; largest difference 0.1,
    processor differs"; where some are farther, how many and which run is the farthest.
    """
    repeated = {r["run_id"]: r for r in published}
    mine = [record for record in own if record["run_id"] in repeated]
    theirs = dict(_rates(published))
    apart = {place: abs(rate - theirs[place]) for place, rate in _rates(mine) if place in theirs}
    if not apart:
        return "None of your own runs is a published one: nothing to compare."
    near = sum(round(points, 6) <= POINTS for points in apart.values())
    farthest = max(apart, key=apart.__getitem__)
    text = f"{near} of {len(apart)} error rates within {POINTS} points of the published ones"
    text += f"; largest difference {apart[farthest]:.1f}"
    if near < len(apart):
        run, domain = farthest
        text += f" ({run}, {DOMAINS[domain]}), {len(apart) - near} farther than {POINTS}"
    differs = _differs([(record, repeated[record["run_id"]]) for record in mine])
    text += f", {differs}" if differs else ""
    missing = len(theirs) - len(apart)
    return f"{text}. {missing} published ones were not run." if missing else f"{text}."


def _rates(records: Sequence[Record]) -> Iterator[tuple[Rate, float]]:
    """The rate in per cent that tables show of each test set."""
    for record in records:
        for evaluation in own_evaluations(record):
            name = rate_of(HEADLINE, evaluation["language"])
            value = 100 * evaluation["scores"][_NORMALIZER][name][name]
            yield (record["run_id"], evaluation["domain"]), value


def _differs(pairs: Sequence[tuple[Record, Record]]) -> str:
    """What of the machine is not the same, in words."""
    named = {"processor": _processor, "number of threads": _threads}
    found = [name for name, of in named.items() if any(of(a) != of(b) for a, b in pairs)]
    return " and ".join(found) + (" differ" if len(found) > 1 else " differs") if found else ""


def _processor(record: Record) -> tuple[str, str]:
    hardware = record["provenance"]["hardware"]
    return hardware["device"], hardware["cpu"]


def _threads(record: Record) -> Any:
    return (record["training"] or {}).get("threads")
