"""What a setting does to the validation error: trains, and never hears a test set.

    python -m benchmarks.study.tuning clsr learning_rate 3e-4 1e-3 --preset mini \\
        --languages cs nl [--seed N] [--overrides JSON] [--out FILE]

Runs stay in outputs/ under their usual ids, so a study that takes one of the values goes on with
it. ``--out`` adds to the file what it does not hold yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distilwhisper_lib import session
from distilwhisper_lib.config.settings import TRAINED, RunConfig, resolve
from distilwhisper_lib.config.values import parse_overrides
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.errors import command
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.provenance import provenance
from distilwhisper_lib.training.loop import train


@command
def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    session.quieten()
    shared = parse_overrides(given.overrides)
    configs = [
        resolve(given.method, given.preset, code, given.seed, shared | {given.setting: value})
        for value in map(_value, given.values)
        for code in given.languages
    ]
    for config in configs:
        row = tried(config, given.setting)
        print(told(row), flush=True)
        if given.out:
            add_row(given.out, row, "run_id", "setting")
    return 0


def tried(config: RunConfig, setting: str) -> dict[str, Any]:
    """Train one configuration; its validation errors by epoch."""
    summary = train(config, load_data(config)).training
    return {
        "run_id": config.run_id,
        "method": config.method,
        "language": config.language,
        "seed": config.seed,
        "setting": setting,
        "value": getattr(config, setting),
        "overrides": config.overrides(),
        **{name: summary[name] for name in ("steps", "best_step", "seconds", "validation")},
        "made": provenance(),
    }


def told(row: dict[str, Any]) -> str:
    errors = ", ".join(f"{100 * v['wer']:.1f}/{100 * v['cer']:.1f}" for v in row["validation"])
    return (
        f"{row['method']} {row['language']} {row['setting']}={row['value']}: validation WER/CER by "
        f"epoch {errors} (best: step {row['best_step']} of {row['steps']}; {row['seconds']:.0f} s)"
    )


def add_row(path: Path, row: dict[str, Any], *names: str) -> None:
    """Add a row to a file of them, in the place of one that has the same values of ``names``."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    rows = [r for r in rows if any(r[name] != row[name] for name in names)]
    write_atomic(path, json.dumps([*rows, row], indent=1) + "\n")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study.tuning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", choices=TRAINED)
    parser.add_argument("setting")
    parser.add_argument("values", nargs="+", metavar="VALUE")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--languages", nargs="+", default=["ca"], metavar="CODE")
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--overrides", default=None, metavar="JSON")
    parser.add_argument("--out", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
