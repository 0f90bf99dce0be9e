"""What each method costs, from the records: values, storage, time, memory, speed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from .hypotheses import FIELD
from .records import DOMAINS, Record
from .tables import LABELS, blocks, own_evaluations, row_labels


def overview(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what ran, how long it trained, how much of the model it trains."""
    order = {method: place for place, method in enumerate(LABELS)}
    rows = []
    for record in sorted(records, key=lambda r: (*_identity(r)[:2], order[_identity(r)[2]])):
        training = record["training"] or {}
        language, seed, method = _identity(record)
        rows.append(
            {
                "method": method,
                "language": language,
                "seed": seed,
                "trained values": training.get("trainable_parameters", 0),
                "minutes": round(training.get("seconds", 0.0) / 60, 1),
                "hypotheses": "published" if _published(record) else "not published",
                "commit": (record["provenance"]["commit"] or "none")[:8],
                "created": record["provenance"]["created"],
            }
        )
    return pd.DataFrame(rows)


def _identity(record: Record) -> tuple[str, int, str]:
    config = record["config"]
    return config["language"], config["seed"], config["method"]


def _published(record: Record) -> bool:
    return all(FIELD in evaluation for evaluation in record["evaluations"])


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """What each system costs: one row per training size and system, means over its runs.

    "trained values"; "MiB per language", what has to be stored for one more language; "training
    minutes"; "peak GiB" of memory in training, the largest of all runs; "real-time factor" of
    each domain, seconds of computing per second of audio; "device", without which times say
    nothing. NaN where nothing is recorded.
    """
    rows = []
    for title, group in blocks(records).items():
        systems: dict[str, list[Record]] = {}
        for record, label in zip(group, row_labels(group), strict=True):
            systems.setdefault(label, []).append(record)
        place = list(LABELS.values()).index
        for system in sorted(systems, key=lambda name: (place(name.partition(" (")[0]), name)):
            rows.append({"training": title, "system": system} | _costs(systems[system]))
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).set_index(["training", "system"])


def _costs(records: Sequence[Record]) -> dict[str, Any]:
    trainings = [record["training"] for record in records if record["training"]]
    evaluations = [e for record in records for e in own_evaluations(record)]
    seconds = _mean(t["seconds"] for t in trainings)
    peaks = [t["peak_memory_bytes"] for t in trainings if t["peak_memory_bytes"] is not None]
    speed = {
        f"real-time factor, {name}": _mean(e["rtf"] for e in evaluations if e["domain"] == domain)
        for domain, name in DOMAINS.items()
    }
    hardware = [record["provenance"]["hardware"] for record in records]
    return {
        "runs": len(records),
        "trained values": _mean(t["trainable_parameters"] for t in trainings),
        "MiB per language": _mean(t["artifact_bytes"] for t in trainings) / 2**20,
        "training minutes": seconds / 60,
        "peak GiB": max(peaks) / 2**30 if peaks else math.nan,
        **speed,
        "device": ", ".join(sorted({_device(made) for made in hardware})),
    }


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else math.nan


def _device(hardware: dict[str, Any]) -> str:
    if hardware["device"] == "cpu":
        return f"{hardware['cpu']}, {hardware['cores']} cores"
    return hardware["device"]


def formatted_costs(table: pd.DataFrame) -> pd.DataFrame:
    """`cost_table` as text, with "none" where a system trains or records nothing."""
    digits = {"runs": 0, "trained values": 0, "MiB per language": 1, "training minutes": 1}
    text = table.astype(object)
    for name in table.columns.drop("device", errors="ignore"):
        places = digits.get(name, 4 if name.startswith("real-time") else 2)
        text[name] = [
            "none" if math.isnan(value) else f"{value:,.{places}f}" for value in table[name]
        ]
    return text
