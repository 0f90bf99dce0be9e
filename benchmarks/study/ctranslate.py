"""Does ctranslate2 hear what the kit hears? A finished run as a plain Whisper, on its own test set.

    python -m benchmarks.study.ctranslate outputs/lora-ca-s77-... [--compute float32 int8]

Merges the run (LoRA) or takes it as it is (full fine-tuning), converts it, decodes the in-domain
test set greedily from the very same log-mel features, and compares with the run's hypotheses. Needs
the extra "faster-whisper". Prints a table; --out keeps it as JSON with commit and hardware.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import WhisperProcessor

from distilwhisper_lib.config.settings import WITH_EXPERTS
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.evaluation.decoding import read_hypotheses
from distilwhisper_lib.evaluation.run import load_run
from distilwhisper_lib.export.bundle import export_run, to_ctranslate2
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.speech.features import SpeechDataset, extract_features

_BATCH = 16


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.ctranslate", description=__doc__
    )
    parser.add_argument("run", help="the folder of a finished LoRA or full fine-tuning run")
    parser.add_argument("--compute", nargs="+", default=["float32", "int8"], metavar="TYPE")
    parser.add_argument("--out", type=Path, help="a JSON file")
    given = parser.parse_args(arguments)
    try:
        rows = compare(given.run, given.compute)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(pd.DataFrame(rows).to_string(index=False))
    if given.out:
        about = {"run_id": Path(given.run).name, "provenance": provenance(command=_command(given))}
        write_atomic(given.out, json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


def compare(folder: str | Path, compute_types: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each arithmetic: the share of same texts, and the WER of both (per cent)."""
    run = load_run(folder)
    config = run.config
    if config.method in WITH_EXPERTS:
        raise UserError(
            f"{run.record['run_id']} has gates, which no plain Whisper has: name a LoRA or full "
            "run (export --compare scores a folded expert beside its gates)"
        )
    ours = read_hypotheses(run.folder / "in_domain-test.jsonl")
    table = load_data(config).in_domain
    rows = []
    with tempfile.TemporaryDirectory() as place:
        plain = export_run(run, Path(place) / "plain")
        converted = to_ctranslate2(plain, Path(place) / "converted")
        for compute in compute_types:
            said = hear(converted, run.processor, table, config.max_new_tokens, compute)
            theirs = [row | {"hypothesis": text} for row, text in zip(ours, said, strict=True)]
            same = sum(
                a["hypothesis"] == b["hypothesis"] for a, b in zip(ours, theirs, strict=True)
            )
            rows.append(
                {
                    "compute": compute,
                    "clips": len(ours),
                    "same text": same,
                    "WER (marks), kit": _wer(ours, config.language),
                    "WER (marks), ctranslate2": _wer(theirs, config.language),
                }
            )
    return rows


def hear(
    folder: str | Path,
    processor: WhisperProcessor,
    table: pd.DataFrame,
    max_new_tokens: int,
    compute_type: str = "float32",
) -> list[str]:
    """What a converted Whisper transcribes, greedily; a corpus table's clips in their order."""
    import ctranslate2

    model = ctranslate2.models.Whisper(str(folder), compute_type=compute_type)
    tokenizer, clips = processor.tokenizer, SpeechDataset(table)
    texts = []
    for first in range(0, len(clips), _BATCH):
        rows = [clips[i] for i in range(first, min(first + _BATCH, len(clips)))]
        features = extract_features(processor.feature_extractor, [row["audio"] for row in rows])
        prompts = [
            ["<|startoftranscript|>", f"<|{row['language']}|>", "<|transcribe|>",
             "<|notimestamps|>"] for row in rows
        ]  # fmt: skip
        results = model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(features)),
            [tokenizer.convert_tokens_to_ids(prompt) for prompt in prompts],
            beam_size=1,
            max_length=len(prompts[0]) + max_new_tokens,
        )
        ids = [result.sequences_ids[0] for result in results]
        texts += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return texts


def _wer(rows: list[dict[str, Any]], language: str) -> float:
    return round(100 * score(rows, language)["marks"]["wer"]["wer"], 2)


def _command(given: argparse.Namespace) -> str:
    return f"python -m benchmarks.study.ctranslate outputs/{Path(given.run).name}"


if __name__ == "__main__":
    sys.exit(main())
