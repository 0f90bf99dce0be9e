"""The numbers behind the figures of gates, one a row, for a spreadsheet: `plots.save` writes them.

Every table begins with run, method, language and seed; layers count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from distilwhisper_lib.gates.counts import CLASSES, SCORE_EDGES, SIDES
from distilwhisper_lib.gates.forced import ForcedGates, differences

GateFile = Mapping[str, Any]


def _about(gates: GateFile) -> dict[str, Any]:
    return {"run": gates["run_id"]} | {n: gates.get(n) for n in ("method", "language", "seed")}


def share_table(gate_files: Sequence[GateFile]) -> pd.DataFrame:
    """Every share of some gate files.

    domain, side, positions (the class, or "all" that count), layer, share, low, high in per cent;
    NaN where there is no interval.
    """
    rows = []
    for gates in gate_files:
        for domain, summary in _domains(gates):
            for side, name, shares, interval in _series(summary):
                place = {"domain": domain, "side": side, "positions": name}
                rows += _by_layer(_about(gates) | place, "share", shares, interval)
    return pd.DataFrame(rows)


def _domains(gates: GateFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((domain, summary) for domain, summary in gates["domains"].items() if summary)


def _series(
    summary: Mapping[str, Any],
) -> Iterator[tuple[str, str, list[float], list[list[float]] | None]]:
    for side in SIDES:
        yield side, "all", summary[side], summary.get(f"{side}_interval")
        for name in CLASSES[side]:
            if name in summary.get("classes", {}):
                found = summary["classes"][name]
                yield side, name, found["share"], found["interval"]


def _by_layer(
    about: Mapping[str, Any],
    name: str,
    values: Sequence[float],
    interval: Sequence[Sequence[float]] | None,
) -> Iterator[dict[str, Any]]:
    bounds = interval or [(np.nan, np.nan)] * len(values)
    for layer, (value, (low, high)) in enumerate(zip(values, bounds, strict=True), start=1):
        yield {**about, "layer": layer, name: 100 * value, "low": 100 * low, "high": 100 * high}


def entropy_table(gate_files: Sequence[GateFile]) -> pd.DataFrame:
    """Entropy of routing in per cent of a bit, with intervals of that "of" the layer.

    "of": "all", or what is left within_utterance and within_class (of the decoder).
    """
    rows = []
    for gates in gate_files:
        for domain, summary in _domains(gates):
            for side, found in summary.get("entropy", {}).items():
                for name in ("all", "within_utterance", "within_class"):
                    if name in found:
                        place = {"domain": domain, "side": side, "of": name}
                        interval = found["interval"] if name == "all" else None
                        rows += _by_layer(_about(gates) | place, "entropy", found[name], interval)
    return pd.DataFrame(rows)


def score_table(gates: GateFile) -> pd.DataFrame:
    """How many positions gave a score "from" (in) "to" (out), by domain, side and layer."""
    edges = [-np.inf, *SCORE_EDGES, np.inf]
    return pd.DataFrame(
        _about(gates)
        | {"domain": domain, "side": side, "layer": layer, "from": low, "to": high}
        | {"positions": count}
        for domain, summary in _domains(gates)
        for side, layers in (summary.get("scores") or {}).items()
        for layer, counts in enumerate(layers, start=1)
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )


def means_table(record: Mapping[str, Any]) -> pd.DataFrame:
    """Mean gates and their noise by step: "of" training or validation, "name" as logged, value."""
    config, training = record["config"], record["training"] or {}
    about = {"run": record["run_id"]} | {n: config[n] for n in ("method", "language", "seed")}
    return pd.DataFrame(
        {**about, "of": of, "step": entry["step"], "name": name, "value": value}
        for of, part in (("training", "log"), ("validation", "validation"))
        for entry in training.get(part, ())
        for name, value in entry.items()
        if name.startswith("gate_") and value is not None
    )


def routes_table(gates: GateFile) -> pd.DataFrame:
    """The example's routes: side, layer, place (from 1), token or second it begins, expert (1)."""
    example = gates["example"]
    sides = {"encoder": example["frame_gates"], "decoder": example["token_gates"]}
    rows = []
    for side, layers in sides.items():
        for layer, routes in enumerate(layers, start=1):
            for place, expert in enumerate(routes, start=1):
                if side == "decoder":
                    what = {"token": example["tokens"][place - 1]}
                else:
                    begins = example["seconds"] * (place - 1) / len(routes)
                    what = {"second": round(begins, 3)}
                place_of = {"side": side, "layer": layer, "place": place, "expert": expert}
                rows.append(_about(gates) | place_of | what)
    return pd.DataFrame(rows)


def forced_table(forced: ForcedGates) -> pd.DataFrame:
    """differences() of every domain of a file of forced gates, "domain" and "case" as columns."""
    found = {domain: differences(forced, domain) for domain in forced["domains"]}
    return pd.concat(found, names=["domain"]).reset_index()


# The table behind each figure that gate_plots draws of several gate files.
BEHIND = {
    "frame_shares": share_table,
    "token_class_shares": share_table,
    "entropy_lines": entropy_table,
}
