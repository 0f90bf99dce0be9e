"""What a run did to languages and tasks that it was not trained on.

Experts leave them as they were, by construction: a language without an expert, and translation,
take the shared path of the very same weights. Full fine-tuning and LoRA change what every
language goes through. Here both are heard, on a few clips, before and after.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .config import RunConfig
from .corpora import open_corpus
from .errors import UserError
from .evaluation import transcribe
from .hypotheses import FIELD, Hypotheses, publish, same_clips
from .languages import find_language
from .records import Record
from .scoring import score
from .subsets import take_usable
from .tables import HEADLINE, blocks, rate_of, row_labels, row_place
from .training import Trained

DOMAIN = "out_of_domain"  # FLEURS in the paper's presets: there in every language


def hear_untrained(config: RunConfig, trained: Trained) -> list[dict[str, Any]]:
    """Decode and publish what the run was not trained for: the record's "forgetting".

    Each language of ``config.forgetting`` but the run's own is transcribed, and its own is
    translated, `forgetting_clips` clips of the out-of-domain test set each. A language that the
    corpus lacks is left out with a warning. Nothing for the teacher, which nobody trains.
    """
    wanted = [find_language(name).code for name in config.forgetting.split()]
    if not wanted or config.method == "teacher":
        return []
    others = [code for code in dict.fromkeys(wanted) if code != config.language]
    tasks = [("transcribe", code) for code in others] + [("translate", config.language)]
    heard = [_hear(config, trained, task, language) for task, language in tasks]
    return [entry for entry in heard if entry is not None]


def _hear(config: RunConfig, trained: Trained, task: str, language: str) -> dict[str, Any] | None:
    size = min(config.forgetting_clips, config.test_size or config.forgetting_clips)
    try:
        corpus = open_corpus(config.out_of_domain, language, "test", config.data_dir)
        clips, _ = take_usable(corpus, size, config.max_seconds)
    except UserError as error:
        warnings.warn(f"forgetting: {language} is left out: {error}", stacklevel=2)
        return None
    if clips.empty:
        return None
    part = f"{task}-{language}"
    rows = transcribe(
        trained.model,
        trained.processor,
        clips,
        config.output_dir / f"{part}-untrained.jsonl",
        max_new_tokens=config.max_new_tokens,
        batch_size=config.eval_batch_size,
        precision=config.eval_precision,
        task=task,
    )
    return {
        "task": task,
        "language": language,
        "domain": DOMAIN,
        "corpus": config.out_of_domain,
        "clips": len(rows),
        "part": part,
        FIELD: publish(rows, config.results_dir, config.run_id, part),
        # The references are transcripts: they cannot score a translation.
        "scores": score(rows, language) if task == "transcribe" else None,
    }


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
