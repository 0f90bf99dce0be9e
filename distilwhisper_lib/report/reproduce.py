"""results/reproduce.md: each number of the tables, the runs it is from, and the command of each.

Made from records, as the README's blocks are, and by the same command; a test fails when stale.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from distilwhisper_lib.config.settings import DOMAINS, Record
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.results.tables import (
    HEADLINE,
    blocks,
    own_evaluations,
    rate_of,
    row_labels,
    row_place,
)

NORMALIZER = "marks"
PAGE = "reproduce.md"
_SECTIONS = {".": "Results", "demo": "The embedded demo"}  # folder below results/ -> heading

_HEAD = f"""\
# Every number, and how to get it again

Made by `python -m distilwhisper_lib results readme` from the records beside it; `make test` fails
when it is stale.

**From what was said**, in seconds: `python -m distilwhisper_lib results check` scores every
published hypothesis again, under both normalisers, and compares each rate and count with its
record. Tolerance: none. `make test` does it too.

**From training**: the command of a run, below, in a fresh clone with the same data and models (what
these are, [README.md](README.md) says for the results here; the demo brings its own). It writes
the same files again, so `git diff results/` shows what came out otherwise. Tolerance: none on the
same kind of machine with the same versions and number of threads: the record's
`training.weights_sha256` is then the same, and `training.teacher_targets.sha256` where a teacher
taught. Elsewhere sums round otherwise, and training in bfloat16 makes much of that: of the eleven
runs of the miniature that were trained again with another number of threads, or from targets that
another number had built, half of the rates moved by less than 0.8 points, the furthest by 3.6.

These repeats, and those that came out equal to the bit, are in `benchmarks/repeats.json`, made by
`python -m benchmarks.repeats`.

The tables below are the headline's, with marks kept. Everything else is made of the same files:
CER, Whisper's normaliser, averages, intervals, differences and soft gates by
`python -m distilwhisper_lib results readme` (in the README above and the one here), gate shares and
figures by notebook `08` from `gates/`, forgetting and costs by notebook `07` from `runs/`.

A cell is the mean over its runs of `evaluations[...].scores.{NORMALIZER}` in `runs/<run>.json`,
times 100; what was said is in `hypotheses/<run>-<domain>.jsonl.gz`.
"""


def reproduce_page(results: str | Path) -> str:
    """The page, of all records below a results folder; Markdown."""
    parts = [_HEAD]
    for folder, heading in _SECTIONS.items():
        if records := load_records(Path(results) / folder):
            parts += [f"## {heading}\n", *_cells(records, folder), _commands(records, folder)]
    return "\n".join(parts)


def update_page(results: str | Path, check: bool = False) -> bool:
    """Write the page below ``results``; with ``check`` only look. Returns whether it was so."""
    path, page = Path(results) / PAGE, reproduce_page(results)
    current = path.is_file() and path.read_text(encoding="utf-8") == page
    if not current and not check:
        write_atomic(path, page)
    return current


def _cells(records: Sequence[Record], folder: str) -> Iterator[str]:
    for title, group in blocks(records).items():
        lines = [
            f"### {title}\n",
            "| Row | Column | Value | Runs |",
            "| :-- | :-- | --: | :-- |",
        ]
        cells: dict[tuple[str, str, str], list[tuple[float, str]]] = defaultdict(list)
        for record, label in zip(group, row_labels(group), strict=True):
            for evaluation in own_evaluations(record):
                rate = rate_of(HEADLINE, language := evaluation["language"])
                value = 100 * evaluation["scores"][NORMALIZER][rate][rate]
                column = f"{DOMAINS[evaluation['domain']]} {language}, {rate.upper()}"
                cells[label, evaluation["domain"], column].append((value, record["run_id"]))
        order = sorted(cells, key=lambda c: (row_place(c[0]), list(DOMAINS).index(c[1]), c[2]))
        for label, domain, column in order:
            found = sorted(cells[label, domain, column], key=lambda cell: cell[1])
            runs = ", ".join(f"[{run}]({_place(folder, run)})" for _, run in found)
            value = statistics.fmean(value for value, _ in found)
            lines.append(f"| {label} | {column} | {value:.2f} | {runs} |")
        yield "\n".join(lines) + "\n"


def _commands(records: Sequence[Record], folder: str) -> str:
    lines = ["### Commands\n", "| Run | Commit | Threads | Command |", "| :-- | :-- | --: | :-- |"]
    for record in sorted(records, key=lambda record: record["run_id"]):
        made, training = record["provenance"], record["training"] or {}
        commit = f"`{made['commit'][:8]}`" if made["commit"] else "none"
        command = f"`{made['command']}`" if made["command"] else "not recorded"
        run = f"[{record['run_id']}]({_place(folder, record['run_id'])})"
        cells = [run, commit, str(training.get("threads", "")), command.replace("|", "\\|")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _place(folder: str, run: str) -> str:
    return (Path(folder) / "runs" / f"{run}.json").as_posix()
