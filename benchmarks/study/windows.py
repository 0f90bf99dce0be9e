"""What an untrained Whisper makes of less silence after a clip than it knows.

    python -m benchmarks.study.windows [--preset mini] [--languages cs nl] [--out FILE]

Validation clips zero-shot: in Whisper's own window, in the preset's, and in windows that fit the
clip and keep a tail of so many seconds of silence after it. Hears no test set. ``--out`` adds to
the file, in the place of what it has of the same clips.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.tuning import add_row
from distilwhisper_lib import session
from distilwhisper_lib.config.settings import RunConfig, resolve
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import command
from distilwhisper_lib.evaluation.decoding import transcribe
from distilwhisper_lib.model.loading import load_model
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.scoring.rates import score
from distilwhisper_lib.speech import features

TAILS = (0.0, 0.5, 1.0, 2.0)


def heard(config: RunConfig) -> Iterator[dict[str, Any]]:
    """A row a window: per cent WER and CER, clips that the token limit cut, seconds."""
    table, usual = load_data(config).validation, features.TAIL
    windows = [("whole", None, usual), ("preset's", config.window_seconds, usual)]
    windows += [("fit", config.window_seconds, tail) for tail in TAILS]
    for window, seconds, tail in windows:
        features.TAIL = tail
        try:
            model, processor = load_model(
                config.student, window_seconds=seconds, fit_window=window == "fit"
            )
            begin = time.process_time()
            rows = transcribe(
                model, processor, table, max_new_tokens=config.max_new_tokens, progress=False
            )
        finally:
            features.TAIL = usual
        rates = score(rows, config.language)[config.selection_normalizer]
        yield {
            "language": config.language,
            "clips": len(rows),
            "mean_seconds": round(float(table["seconds"].mean()), 2),
            "window": window,
            "window_seconds": seconds,
            "tail": tail if window == "fit" else None,
            **{metric: round(100 * rates[metric][metric], 2) for metric in ("wer", "cer")},
            "capped": sum(row["capped"] for row in rows),
            "cpu_seconds": round(time.process_time() - begin, 1),
            "model": config.student,
            "made": provenance(),
        }


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.windows",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--languages", nargs="+", default=["cs", "nl"], metavar="CODE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    session.quieten()
    for code in given.languages:
        for row in heard(resolve("zero_shot", given.preset, code)):
            names = ("language", "window", "window_seconds", "tail")
            print(*(f"{k} {row[k]}" for k in (*names, "wer", "cer", "capped")), flush=True)
            if given.out:
                add_row(given.out, row, *names, "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())
