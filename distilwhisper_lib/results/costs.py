"""What each method costs, from the records: values, storage, time, memory, speed; and what it gives
for its size and for the share of positions that go to its expert."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from distilwhisper_lib.config.settings import DOMAINS, LABELS, ORIGIN, WITH_EXPERTS, Record
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.results.frame import (
    HEADLINE,
    averaged,
    blocks,
    rate_of,
    rated,
    row_labels,
    row_place,
)
from distilwhisper_lib.results.hypotheses import FIELD, Hypotheses, same_clips
from distilwhisper_lib.results.significance import FORCED, LEARNED, draws_of, forced_part


def forgetting_table(
    records: Sequence[Record],
    folder: str | Path | Hypotheses,
    metric: str = HEADLINE,
    normalizer: str = "marks",
) -> pd.DataFrame:
    """Before and after training, one row per trained run and language or task it never saw.

    "before" (the student as it was) and "after" in per cent of the metric, NaN for translation;
    "same outputs", per cent of the clips for which both say the same to the letter: 100 is what
    experts promise. Empty without runs that listened. ``note`` tells what cannot be compared.
    """
    table, published = [], Hypotheses.of(folder)
    for title, group in blocks(records).items():
        untrained = [r for r in group if r["config"]["method"] == "zero_shot"]
        labelled = zip(group, row_labels(group), strict=True)
        for record, label in sorted(labelled, key=lambda item: _order(*item)):
            if record["config"]["method"] in ("teacher", "zero_shot"):
                continue
            config = record["config"]
            for entry in record.get("forgetting") or ():
                row = {"training": title, "system": label, "trained on": config["language"]}
                row |= {"seed": config["seed"], "task": entry["task"], "heard": entry["language"]}
                row |= {"clips": entry["clips"]}
                table.append(
                    row | _compare(record, entry, untrained, published, metric, normalizer)
                )
    return pd.DataFrame(table)


def _order(record: Record, label: str) -> tuple:
    config = record["config"]
    return row_place(label), config["language"], config["seed"]


def _compare(
    record: Record,
    entry: Mapping[str, Any],
    untrained: Sequence[Record],
    published: Hypotheses,
    metric: str,
    normalizer: str,
) -> dict[str, Any]:
    after = published.rows(record, entry)
    for student, earlier in _same_part(untrained, entry):
        if student["models"]["student"] != record["models"]["student"]:
            continue
        before = published.rows(student, earlier)
        if not same_clips(before, after):
            continue
        pairs = zip(before, after, strict=True)
        same = 100 * float(np.mean([a["hypothesis"] == b["hypothesis"] for a, b in pairs]))
        was, now = (_rate(e, metric, normalizer) for e in (earlier, entry))
        rates = {"before": was, "after": now, "difference": now - was}
        return rates | {"same outputs": same, "note": ""}
    now = _rate(entry, metric, normalizer)
    nothing = {"before": math.nan, "after": now, "difference": math.nan, "same outputs": math.nan}
    return nothing | {"note": "no run of the student on these clips"}


def _same_part(
    records: Sequence[Record], entry: Mapping[str, Any]
) -> Iterator[tuple[Record, dict[str, Any]]]:
    for record in records:
        for other in record.get("forgetting") or ():
            if (other["task"], other["language"]) == (entry["task"], entry["language"]):
                yield record, other


def _rate(entry: Mapping[str, Any], metric: str, normalizer: str) -> float:
    if entry["scores"] is None:
        return math.nan
    name = rate_of(metric, entry["language"])
    return 100 * entry["scores"][normalizer][name][name]


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
                "from": record.get(ORIGIN, "own run"),
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
    for title, block in rated(records).groupby("training", sort=False):
        for system in sorted(block["system"].unique(), key=row_place):
            heard = block[block["system"] == system]
            rows.append({"training": title, "system": system} | _costs(heard))
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).set_index(["training", "system"])


def _costs(heard: pd.DataFrame) -> dict[str, Any]:
    records = list({record["run_id"]: record for record in heard["record"]}.values())
    trainings = [record["training"] for record in records if record["training"]]
    seconds = _mean(t["seconds"] for t in trainings)
    peaks = [t["peak_memory_bytes"] for t in trainings if t["peak_memory_bytes"] is not None]
    speed = {
        f"real-time factor, {name}": _mean(heard.loc[heard["domain"] == domain, "rtf"].dropna())
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


def size_and_share(
    records: Sequence[Record],
    forced: Iterable[Mapping[str, Any]] = (),
    domain: str = "in_domain",
    normalizer: str = "marks",
) -> pd.DataFrame:
    """Each system's error rate beside what it adds and what is routed to that.

    One row per training size, system, "gates" and seed, means over the languages that an average
    is over, where the seed ran in all of them. "gates" is "learned", or of ``forced``, files of
    forced gates, the ways in which the run's own weights heard all clips. "MiB" is what a language
    adds, as it was trained (float32), 0 without training; "share" the per cent of positions that
    it works on: of gates the mean of encoder and decoder, each the mean of its layers; 100 of
    soft gates, which compute both branches everywhere. Both are NaN of the teacher. Raises
    UserError for an unknown domain or normaliser.
    """
    one_of("domain", domain, tuple(DOMAINS))
    files = {file["run_id"]: file for file in forced}
    shown = rated(records, HEADLINE, normalizer)
    rows = [
        {"training": row.training, "system": row.system, "domain": domain, "gates": gates,
         "seed": row.seed, "language": row.language, "rate": row.metric,
         "MiB": _added(row.record), "share": share, "error": error}
        for row in shown[shown["domain"] == domain].itertuples()
        for gates, share, error in _heard(row, files.get(row.record["run_id"]))
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=[*_SIZE, "language"])
    parts = []
    for _, block in table.groupby("training", sort=False):
        counted = averaged(sorted(block["language"].unique()), HEADLINE)
        block = block[block["language"].isin(counted)]
        languages = block.groupby(_OF)["language"].transform("nunique")
        whole = block[languages == len(counted)].groupby(_OF, sort=False)
        means = whole[_VALUES].mean().reset_index()
        parts.append(means.sort_values("system", key=lambda s: s.map(row_place), kind="stable"))
    return pd.concat(parts, ignore_index=True) if parts else table[_SIZE]


_OF = ["training", "system", "domain", "gates", "seed", "rate"]
_VALUES = ["MiB", "share", "error"]
_SIZE = [*_OF, *_VALUES]


def _added(record: Record) -> float:
    if record["training"]:
        return (record["training"]["artifact_bytes"] or math.nan) / 2**20
    return math.nan if record["config"]["method"] == "teacher" else 0.0


def _heard(row: Any, forced: Mapping[str, Any] | None) -> Iterator[tuple[str, float, float]]:
    """(gates, share, error) of one evaluation as it was, and as it was under forced gates."""
    config, said = row.record["config"], row.evaluation
    share = {"teacher": math.nan, "zero_shot": 0.0}.get(config["method"], 100.0)
    if config["method"] in WITH_EXPERTS and config.get("gate_mode") != "soft":
        sides = (said["gates"] or {}).values()
        share = 100 * statistics.fmean(map(statistics.fmean, sides)) if sides else math.nan
    yield LEARNED, share, row.error
    part = forced_part(forced, row.record, row.domain)
    cases = part["cases"] if len(part["ids"]) == said["clips"] else {}
    for way in FORCED:
        if draws := [cases[name]["scores"] for name in draws_of(cases, way)]:
            error = statistics.fmean(d[row.normalizer][row.metric] for d in draws)
            yield way, 100.0 if way in ("soft", "open") else share, 100 * error
