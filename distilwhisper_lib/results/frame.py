"""Every evaluation of some records as one long table, which all other tables are made from.

`evaluations` has the rows; what they are called and where they stand (training sizes, systems in
the paper's order, the rate that a language is told by) is said here once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from distilwhisper_lib.config.changes import changed_settings, named
from distilwhisper_lib.config.settings import (
    BASELINES,
    CAME_WITH_KIT,
    DOMAINS,
    LABELS,
    NORMALIZERS,
    ORIGIN,
    TRAINED,
    WITH_EXPERTS,
    Record,
    decisive,
)
from distilwhisper_lib.io.checked import one_of
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.scoring.rates import COUNTS

RATES = ("wer", "cer")
# The CER where words are not spaced, else the WER.
HEADLINE = "headline"
METRICS = (HEADLINE, *RATES)
AVERAGE = "average"

PLACE = ["training", "system", "domain", "language", "seed"]  # of one evaluation in the tables
_COLUMNS = [*PLACE, "corpus", "rtf", "normalizer", "metric", "error", *COUNTS,
            "record", "evaluation"]  # fmt: skip


# What the settings of a baseline make of its name.
_ADAPTERS = {"lora": "+ LoRA", "dora": "+ DoRA", "token": "+ language token"}
_ADAPTED = {"feed_forward": "", "attention": ", attention", "all": ", all linear"}
_TAUGHT = {"none": "", "kl": " + KL", "js": " + JS"}
# All rows that tables know, in their order: the paper's systems, each with its kinds.
ROWS = (
    "Teacher",
    "Student zero-shot",
    *(LABELS["full"] + taught for taught in _TAUGHT.values()),
    *(
        adapter + adapted + taught
        for adapter in _ADAPTERS.values()
        for adapted in _ADAPTED.values()
        for taught in _TAUGHT.values()
    ),
    *(LABELS[method] for method in ("clsr", "kl", "js")),
)


def row_of(method: str, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a table calls a run of a method with such settings, and the settings left to name."""
    left = dict(settings)
    if method not in BASELINES:
        return LABELS[method], left
    taught = _TAUGHT[left.pop("distil", "none")]
    if method == "full":
        return LABELS[method] + taught, left
    name, where = left.pop("adapter", "lora"), left.pop("lora_layers", "feed_forward")
    return _ADAPTERS[name] + _ADAPTED[where] + taught, left


def evaluations(records: Sequence[Record]) -> pd.DataFrame:
    """One row per training size, run, domain, normaliser and rate, in the tables' order.

    "training" is the title of its block, "system" its row's name; "metric" is "wer" or "cer" and
    "error" that rate in per cent, made of "substitutions", "deletions", "insertions" and "hits".
    "record" and "evaluation" are what the row is from. A record counts for the language that it
    was run for, and in every block that it stands in.
    """
    rows: list[dict[str, Any]] = []
    for title, group in blocks(records).items():
        labelled = zip(group, row_labels(group), strict=True)
        found = [
            {"training": title, "system": label, "domain": said["domain"],
             "language": said["language"], "seed": record["config"]["seed"],
             "corpus": said["corpus"], "rtf": said["rtf"], "normalizer": normalizer,
             "metric": metric, "error": 100 * said["scores"][normalizer][metric][metric],
             **{kind: said["scores"][normalizer][metric][kind] for kind in COUNTS},
             "record": record, "evaluation": said}
            for record, label in labelled
            for said in own_evaluations(record)
            for normalizer in NORMALIZERS
            for metric in RATES
        ]  # fmt: skip
        rows += sorted(found, key=_place)
    return pd.DataFrame(rows, columns=_COLUMNS)


def _place(row: Mapping[str, Any]) -> tuple:
    return row["domain"], row["language"], row_place(row["system"]), row["seed"]


def rated(
    records: Sequence[Record], metric: str = HEADLINE, normalizer: str = "marks"
) -> pd.DataFrame:
    """Of `evaluations` one row an evaluation: under this normaliser, the rate of this metric.

    ``metric``: "wer", "cer" or, by default, "headline": WER, but CER for languages that are
    written without spaces. UserError for an unknown name.
    """
    one_of("metric", metric, METRICS)
    one_of("normalizer", normalizer, NORMALIZERS)
    table = evaluations(records)
    shown = table["language"].map(lambda language: rate_of(metric, language))
    return table[(table["normalizer"] == normalizer) & (table["metric"] == shown)]


def own_evaluations(record: Record) -> list[dict[str, Any]]:
    """The record's evaluations in the language that it was run for."""
    language = record["config"]["language"]
    return [e for e in record["evaluations"] if e["language"] == language]


# -------------------------------------------------------------------------------------- rates


def rate_of(metric: str, language: str) -> str:
    """The rate, "wer" or "cer", that a table of this metric shows for a language."""
    return find_language(language).headline if metric == HEADLINE else metric


def averaged(languages: Sequence[str], metric: str) -> list[str]:
    """The languages that an average is over. It is of one rate: the WER of those that show it,
    the CER where none does."""
    rates = {language: rate_of(metric, language) for language in languages}
    rate = "wer" if "wer" in rates.values() else "cer"
    return [language for language in languages if rates[language] == rate]


# ------------------------------------------------------------- blocks and their rows


def blocks(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records by preset and training size, small sizes first, under the title of each block.

    Those that came with the kit stand after one's own, in blocks of their own. A model that trains
    nothing is in every block that was trained from it, or by it, and tested on the same clips.
    """
    groups: dict[_Block, list[Record]] = defaultdict(list)
    for record in records:
        if record["config"]["method"] in TRAINED:
            groups[_block(record)].append(record)
    trained = {key: list(group) for key, group in groups.items()}
    for record in records:
        if record["config"]["method"] not in TRAINED:  # it stands beside all that it measures
            beside = [k for k, group in trained.items() if any(_alike(record, r) for r in group)]
            for key in beside or [_block(record)]:
                groups[key].append(record)
    order = sorted(groups, key=lambda key: (key[0], key[2] or math.inf, key[1]))
    return {_title(*key, groups[key]): groups[key] for key in order}


_Block = tuple[str, str, int | None]  # origin, preset, training size


def _block(record: Record) -> _Block:
    return record.get(ORIGIN, ""), record["preset"], record["config"].get("train_size")


def _alike(untrained: Record, trained: Record) -> bool:
    """Whether a model that trains nothing is the student or teacher of a run, on its test sets."""
    model = "teacher" if untrained["config"]["method"] == "teacher" else "student"
    same = untrained.get(ORIGIN) == trained.get(ORIGIN) and all(
        untrained["config"].get(name) == trained["config"].get(name)
        for name in ("language", model, f"{model}_revision")
    )
    tests = [
        [(r["data"][part] or {}).get("sha256") for part in DOMAINS] for r in (untrained, trained)
    ]
    return same and tests[0] == tests[1]


def _title(origin: str, preset: str, size: int | None, records: Sequence[Record]) -> str:
    came = f", {origin}" if origin else ""
    if size is not None:
        return f"{preset}, {size:,} training clips{came}"
    sizes = sorted({r["data"]["train"]["clips"] for r in records if r["data"]["train"]})
    if not sizes:
        return f"{preset}, all training clips{came}"
    count = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"{preset}, all {count} training clips{came}"


def needs_no_title(titles: Collection[str]) -> bool:
    """Whether rows may stand without the title of their block: it is the only one, of one's own."""
    return len(titles) == 1 and not any(CAME_WITH_KIT in title for title in titles)


def row_place(row: str) -> tuple[int, str]:
    """What rows are sorted by: the paper's order of systems, each before its variants."""
    return ROWS.index(row.partition(" (")[0]), row


def shared_settings(records: Sequence[Record]) -> dict[str, Any]:
    """The settings in which all of these runs differ alike from their preset's; a setting that
    does not count for a run, such as the epochs of one that trains nothing, need not be its."""
    changed = changed_settings(records)
    found = {name: value for settings in changed for name, value in settings.items()}
    for record, settings in zip(records, changed, strict=True):
        method = record["config"]["method"]
        counted = decisive(method) | ({"recipe"} if method in WITH_EXPERTS else set())
        found = {n: v for n, v in found.items() if n not in counted or (n, v) in settings.items()}
    return found


def row_labels(records: Sequence[Record], untold: Collection[str] = ()) -> list[str]:
    """The row of each record; settings are named only where they differ from the preset's, and
    not those ``untold``."""
    labels = []
    for record, changed in zip(records, changed_settings(records), strict=True):
        label, settings = row_of(record["config"]["method"], changed)
        settings = {name: value for name, value in settings.items() if name not in untold}
        labels.append(f"{label} ({', '.join(named(settings))})" if settings else label)
    return labels
