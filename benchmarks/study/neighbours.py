"""What clips that share a window make of each other: their texts' likelihood, alone and packed.

    python -m benchmarks.study.neighbours [--preset mini] [--languages cs nl] [--runs RUN ...]
        [--out FILE]

Validation clips, each in a window of its own and packed into windows as training packs them
(data/packing.py), with the text given: nats a character, by the untrained student and by trained
RUNs (folders). Where neighbours disturb, a packed clip's text is less likely; hears no test set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.nn import functional as F

from benchmarks.study.tuning import add_row
from distilwhisper_lib import session
from distilwhisper_lib.config.settings import RunConfig, resolve
from distilwhisper_lib.data.packing import arranged
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import command
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset

AT_ONCE = 4  # rows
_INPUTS = ("input_features", "decoder_input_ids", "language_ids")


def nats(model: Any, collator: Collator, table: pd.DataFrame) -> float:
    """What the texts of all rows cost together, their ends not counted."""
    clips, total = SpeechDataset(table), 0.0
    for start in range(0, len(clips), AT_ONCE):
        batch = collator([clips[i] for i in range(start, min(start + AT_ONCE, len(clips)))])
        labels = batch["labels"].masked_fill(
            batch["labels"] == collator.tokenizer.eos_token_id, IGNORE
        )
        with torch.inference_mode():
            logits = model(**{name: batch[name] for name in _INPUTS}).logits.float()
        total += float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
    return total


def compared(config: RunConfig, system: str, model: Any, processor: Any) -> dict[str, Any]:
    """Nats a character of the validation clips' texts, alone and packed."""
    table = load_data(config).validation
    collator = Collator(processor, max_length=model.config.max_target_positions)
    packed = arranged(replace(config, pack=True, timestamps=0), table, collator)
    letters = int(table["text"].str.len().sum())
    alone, together = (nats(model.eval(), collator, rows) / letters for rows in (table, packed))
    return {
        "system": system,
        "language": config.language,
        "clips": len(table),
        "windows": len(packed),
        "alone": round(alone, 4),
        "packed": round(together, 4),
        "made": provenance(),
    }


def rows_of(
    preset: str, languages: Sequence[str], runs: Sequence[Path]
) -> Iterator[dict[str, Any]]:
    for code in languages:
        config = resolve("lora", preset, code, overrides={"window_seconds": None})
        yield compared(config, config.student, *load_model(config.student))
    for folder in runs:
        run = load_run(folder)
        yield compared(run.config, run.config.run_id, run.model, run.processor)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.neighbours",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--languages", nargs="*", default=["cs", "nl"], metavar="CODE")
    parser.add_argument("--runs", nargs="*", default=[], type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    session.quieten()
    for row in rows_of(given.preset, given.languages, given.runs):
        names = ("system", "language", "clips", "windows", "alone", "packed")
        print(*(f"{name} {row[name]}" for name in names), flush=True)
        if given.out:
            add_row(given.out, row, "system", "language")
    return 0


if __name__ == "__main__":
    sys.exit(main())
