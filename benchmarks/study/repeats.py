"""A run and the same run trained again: what is equal, and by how much the rates differ.

    python -m benchmarks.study.repeats RECORD AGAIN [--note TEXT] [--out FILE]

Both are records (results/runs/<run>.json of two checkouts). ``--out`` adds to the file, in
the place of an earlier repeat of the same run and note.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.tuning import add_row
from distilwhisper_lib.config.settings import Record
from distilwhisper_lib.errors import UserError, command
from distilwhisper_lib.results.frame import own_evaluations
from distilwhisper_lib.results.records import read_record


def compared(first: Record, again: Record, note: str = "") -> dict[str, Any]:
    """Commands, commits and threads of both; weights, hypotheses and WER (marks, per cent)."""
    if first["run_id"] != again["run_id"]:
        raise UserError(f"{again['run_id']} is another run than {first['run_id']}: name its record")
    if not first["training"]:
        raise UserError(f"{first['run_id']} trains nothing: name a run of notebooks 02 to 06")
    tests = zip(own_evaluations(first), own_evaluations(again), strict=True)
    return {
        "run_id": first["run_id"],
        "note": note,
        "first": _about(first),
        "again": _about(again),
        "weights equal": _weights(first) == _weights(again),
        "tests": {a["domain"]: _test(a, b) for a, b in tests},
    }


def _about(record: Record) -> dict[str, Any]:
    made = {name: record["provenance"][name] for name in ("command", "commit", "created")}
    return made | {"threads": record["training"].get("threads"), "weights_sha256": _weights(record)}


def _weights(record: Record) -> str:
    return record["training"]["weights_sha256"]


def _test(first: dict[str, Any], again: dict[str, Any]) -> dict[str, Any]:
    wer = [round(100 * e["scores"]["marks"]["wer"]["wer"], 2) for e in (first, again)]
    same = first["hypotheses_sha256"] == again["hypotheses_sha256"]
    return {"first": wer[0], "again": wer[1], "hypotheses equal": same}


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.repeats", description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("again", type=Path)
    parser.add_argument("--note", default="", metavar="TEXT")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    row = compared(read_record(given.record), read_record(given.again), given.note)
    print(json.dumps(row, indent=1))
    if given.out:
        add_row(given.out, row, "run_id", "note")
    return 0


if __name__ == "__main__":
    sys.exit(main())
