"""Statistics of gates: of one test set from its utterances, and between runs from gate files.

Everything pools positions: a share is the number of positions that took the expert by the number
of positions, over the whole test set. Intervals are bootstrapped by speaker, see `bootstrap`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.counts import CLASSES, COUNTED, SCORE_EDGES, SIDES
from distilwhisper_lib.scoring.resampling import (
    RESAMPLES,
    Blocks,
    generator,
    resampled_rates,
    speaker_blocks,
)

FEWEST_LAYERS = 4  # below, a correlation over layers says nothing

GateFile = Mapping[str, Any]


# One test set -------------------------------------------------------------------------------


def summarise(
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """What the gates of one test set did, by layer, with 95 % intervals [low, high].

    ``rows`` are hypotheses as transcribe() returns them, ``scores`` what scores_path() holds.

    - "clips", "blocks", "blocked_on": what the intervals resample; they are None with one block
    - "positions": {class: how many}
    - "encoder", "decoder", each with "_interval": share of the expert, over audio frames and over
      all decoder inputs
    - "classes": {class: {"share", "interval"}} of padding frames and the classes of tokens
    - "soft": {side: mean of sigmoid(score)}, the gates before they are made hard
    - "entropy": {side: {"all", "interval", "within_utterance"}} in bits: how undecided a layer is,
      and how much of that is left once the utterance is known (plug-in estimates, a little low
      where utterances are short); of the decoder also "within_class", once the token's class is
    - "scores": {side: counts by layer and bin of gate_counts.SCORE_EDGES}, or None

    Raises UserError for rows of earlier versions of the kit, which counted less.
    """
    tally = _Tally(rows, resamples, seed)
    summary: dict[str, Any] = {
        "clips": len(rows),
        "blocks": tally.blocks.count,
        "blocked_on": tally.blocks.kind,
        "positions": {name: int(tally.units[name].sum()) for name in tally.units},
        "classes": {},
        "soft": _soft(rows),
        "entropy": {},
        "scores": _checked_scores(scores),
    }
    for side in SIDES:
        hits, units = tally.over(COUNTED[side])
        rates = tally.resampled(hits, units, side)
        share = hits.sum(0) / units.sum()
        summary[side] = _rounded(share)
        summary[f"{side}_interval"] = _interval(rates)
        within = (units[:, None] * _entropy_of(hits, units[:, None])).sum(0) / units.sum()
        summary["entropy"][side] = {
            "all": _rounded(entropy(share)),
            "interval": _interval(None if rates is None else entropy(rates)),
            "within_utterance": _rounded(within),
        }
        for name in CLASSES[side]:
            hits, units = tally.over([name])
            if name != "audio" and units.sum():  # audio is the encoder's headline
                summary["classes"][name] = {
                    "share": _rounded(hits.sum(0) / units.sum()),
                    "interval": _interval(tally.resampled(hits, units, name)),
                }
    by_class = [tally.over([name]) for name in CLASSES["decoder"]]
    left = sum(u.sum() * _entropy_of(h.sum(0), u.sum()) for h, u in by_class)
    total = sum(units.sum() for _, units in by_class)
    summary["entropy"]["decoder"]["within_class"] = _rounded(left / total)
    return summary


def layer_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The headline alone: share of the expert by layer, {"encoder", "decoder"}."""
    tally = _Tally(rows)
    counts = {side: tally.over(COUNTED[side]) for side in SIDES}
    return {side: _rounded(hits.sum(0) / units.sum()) for side, (hits, units) in counts.items()}


def mean_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Hard and soft means over all layers: what training's "gate_mean" is, of what was decoded.

    "gate_hard" and "gate_soft" pool both sides by their positions; "..._encoder", "..._decoder".
    A soft mean is left out where no gate was asked.
    """
    tally, soft = _Tally(rows), _soft(rows)
    sums: dict[str, list[tuple[float, float]]] = {"hard": [], "soft": []}
    for side in SIDES:
        hits, units = tally.over(COUNTED[side])
        layers = hits.shape[1]
        sums["hard"].append((hits.sum(), units.sum() * layers))
        if soft[side] is not None:
            sums["soft"].append((np.mean(soft[side]) * units.sum() * layers, sums["hard"][-1][1]))
    means = {}
    for kind, parts in sums.items():
        if len(parts) == len(SIDES):
            total, positions = np.sum(parts, axis=0)
            means[f"gate_{kind}"] = float(total / positions)
            for side, (part, count) in zip(SIDES, parts, strict=True):
                means[f"gate_{kind}_{side}"] = float(part / count)
    return means


def entropy(share: np.ndarray) -> np.ndarray:
    """Entropy in bits of a choice that falls on one side with this probability: 0 to 1."""
    p = np.clip(np.stack([share, 1 - np.asarray(share)]), 0.0, 1.0)
    return np.abs((p * np.log2(np.where(p > 0, p, 1.0))).sum(0))  # abs: no minus zero


class _Tally:
    """Counts of all utterances by class, and the draws of their blocks."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        _check(rows)
        self.resamples, self.seed = resamples, seed
        self.blocks: Blocks = speaker_blocks([row.get("speaker") or "" for row in rows])
        self.units: dict[str, np.ndarray] = {}  # class -> (utterances,)
        self._hits: dict[str, np.ndarray] = {}  # class -> (utterances, layers)
        for side in SIDES:
            nothing = [0] * len(rows[0]["gates"][side])
            for name in CLASSES[side]:
                gates = [row["gates"] for row in rows]
                self.units[name] = np.array([g["positions"].get(name, 0) for g in gates])
                self._hits[name] = np.array([g["expert"].get(name, nothing) for g in gates])

    def over(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(positions that took the expert (utterances, layers), positions (utterances,))."""
        return sum(self._hits[name] for name in names), sum(self.units[name] for name in names)

    def resampled(self, hits: np.ndarray, units: np.ndarray, name: str) -> np.ndarray | None:
        """Shares of resampled test sets, (resamples, layers); None where nothing can vary."""
        if len(np.unique(self.blocks.of_utterance[units > 0])) < 2:
            return None
        return resampled_rates(
            hits, units, self.blocks, self.resamples, generator(self.seed, "gates", name)
        )


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    if not all(row["gates"] and "positions" in row["gates"] for row in rows):
        raise UserError(
            "these hypotheses were decoded by an earlier version of the kit, which counted gates "
            "by layer alone: remove the .jsonl files in the run's folder under outputs/ and run "
            "the notebook again (what it trained is kept)"
        )


def _soft(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float] | None]:
    means: dict[str, list[float] | None] = {}
    for side in SIDES:
        units = [sum(r["gates"]["positions"].get(n, 0) for n in COUNTED[side]) for r in rows]
        asked = [(row["gates"]["soft"][side], unit) for row, unit in zip(rows, units, strict=True)]
        asked = [(soft, unit) for soft, unit in asked if soft is not None and unit]
        means[side] = None
        if asked:
            soft, weights = zip(*asked, strict=True)
            means[side] = _rounded(np.average(soft, axis=0, weights=weights))
    return means


def _checked_scores(scores: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The histograms without their edges; None where they are of other bins."""
    if scores is None or list(scores["edges"]) != list(SCORE_EDGES):
        return None
    return {side: scores[side] for side in SIDES}


def _entropy_of(hits: np.ndarray, units: Any) -> np.ndarray:
    return entropy(hits / np.maximum(units, 1))


def _interval(rates: np.ndarray | None) -> list[list[float]] | None:
    """(resamples, layers) -> [[low, high], ...]."""
    if rates is None:
        return None
    low, high = np.quantile(rates, [0.025, 0.975], axis=0)
    return [_rounded(pair) for pair in zip(low, high, strict=True)]


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 4) for value in values]


# Between gate files -------------------------------------------------------------------------


def agreement(gate_files: Sequence[GateFile], domain: str = "in_domain") -> pd.DataFrame:
    """How alike two runs of one method use their experts, layer by layer; one row a pair and side.

    "mean difference": of the layers' shares, in points, without its sign: 0 where both use the
    expert equally much in every layer. "largest", "layer": the layer in which they differ most,
    the first named minus the second, with "low" and "high" (95 %). "correlation": Spearman's over
    layers, whether the same layers lean on the expert, whatever the level; NaN with fewer than
    FEWEST_LAYERS layers, or where all layers of a run are alike.

    Pairs of two languages, and of two seeds of one language, which tell how much of a difference
    is luck of the training. Each language has experts and test sentences of its own: shares can
    be compared, not single tokens.
    """
    rows = []
    for first, second in combinations(sorted(gate_files, key=_order), 2):
        if not _comparable(first, second, domain):
            continue
        names = _pair_names(first, second)
        for side in SIDES:
            rows.append(names | {"side": side} | _compare(first, second, domain, side))
    columns = ["method", "first", "second", "kind", "side", "layers", "mean difference",
               "correlation", "layer", "largest", "low", "high"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def groups_of_languages(gate_files: Sequence[GateFile]) -> list[list[GateFile]]:
    """The gate files that differ in their language alone, two or more together."""
    groups: dict[str, list[GateFile]] = {}
    for gates in sorted(gate_files, key=_order):
        about = [gates.get(name) for name in ("method", "preset", "settings", "seed")]
        groups.setdefault(repr(about), []).append(gates)
    return [group for group in groups.values() if len({g["language"] for g in group}) > 1]


def difference_interval(
    first: np.ndarray, second: np.ndarray, bounds: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """95 % bounds (layers, 2) of first - second, from the bounds (layers, 2) of each.

    For two independent estimates, whatever the shape of their intervals. Source: Zou and Donner,
    Construction of confidence limits about effect measures, Statistics in Medicine 27, 2008.
    """
    difference = first - second
    low = difference - np.hypot(first - bounds[:, 0], others[:, 1] - second)
    high = difference + np.hypot(bounds[:, 1] - first, second - others[:, 0])
    return np.stack([low, high], axis=1)


def _order(gates: GateFile) -> tuple[str, str, str]:
    return str(gates.get("method")), gates["language"], gates["run_id"]


def _comparable(first: GateFile, second: GateFile, domain: str) -> bool:
    """The same method, settings and depth, and either another language or another seed alone."""
    if not (first["domains"].get(domain) and second["domains"].get(domain)):
        return False
    depths = [[len(g["domains"][domain][side]) for side in SIDES] for g in (first, second)]
    same = all(first.get(n) == second.get(n) for n in ("method", "preset", "settings"))
    others = [first.get(name) != second.get(name) for name in ("language", "seed")]
    return depths[0] == depths[1] and same and sum(others) == 1


def _pair_names(first: GateFile, second: GateFile) -> dict[str, Any]:
    between_seeds = first["language"] == second["language"]
    names = [f"{g['language']} ({g.get('seed')})" for g in (first, second)]
    return {
        "method": first.get("method"),
        "first": names[0],
        "second": names[1],
        "kind": "seeds" if between_seeds else "languages",
    }


def _compare(first: GateFile, second: GateFile, domain: str, side: str) -> dict[str, Any]:
    found = [g["domains"][domain] for g in (first, second)]
    a, b = (np.asarray(summary[side], float) for summary in found)
    difference = a - b
    layer = int(np.abs(difference).argmax())
    bounds = [summary.get(f"{side}_interval") for summary in found]
    low = high = np.nan
    if None not in bounds:
        low, high = difference_interval(a, b, *(np.asarray(pair, float) for pair in bounds))[layer]
    return {
        "layers": len(a),
        "mean difference": 100 * float(np.abs(difference).mean()),
        "correlation": _correlation(a, b),
        "layer": layer + 1,
        "largest": 100 * float(difference[layer]),
        "low": 100 * float(low),
        "high": 100 * float(high),
    }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < FEWEST_LAYERS or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    ranks = [pd.Series(values).rank().to_numpy() for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])
