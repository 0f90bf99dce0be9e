"""Pages made from records: the blocks of README.md and results/README.md, and reproduce.md.

A test fails when they are stale; ``python -m distilwhisper_lib results readme`` makes them anew.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from distilwhisper_lib.config.presets import RECIPES
from distilwhisper_lib.config.settings import DISTILLED, DOMAINS, LABELS, WITH_EXPERTS, Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.gates.forced import load_forced
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.languages import find_language
from distilwhisper_lib.results.exports import formatted, to_markdown, with_intervals
from distilwhisper_lib.results.frame import HEADLINE, rated, row_labels, row_place
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.results.significance import COMPARISONS, FORCED, forced_row, resample
from distilwhisper_lib.results.tables import (
    results_table,
    short_of_data,
    shown_metrics,
    title_of,
)

_NORMALIZER_NOTES = {
    "marks": "marks kept: the kit's own rule, which keeps vowel signs and tone marks",
    "whisper": "Whisper's rule, which drops them and splits letters apart: as the public code",
}


def readme_block(records: Sequence[Record]) -> str:
    """Markdown with the WER and CER tables of both normalisers and where each number is from."""
    if not records:
        return "No run is recorded here yet.\n"
    left_out = "A system that was not run at a size has no row there. "
    parts = [_tables(records, "marks"), left_out + notes(records) + "\n"]
    parts.append(_folded("The same with Whisper's normaliser", _tables(records, "whisper")))
    parts.append(_folded("Date, commit, hardware and command of every run", _origins(records)))
    return "\n".join(parts)


def headline_block(records: Sequence[Record]) -> str:
    """Markdown of the one table of the first page: the systems with their preset's settings, and
    what a recipe makes of them."""
    if not records:
        return "No run is recorded here yet.\n"
    cells = results_table(records)
    shown = [label + of for label in LABELS.values() for of in ("", *(f" ({r})" for r in RECIPES))]
    return f"{_table(cells[cells['system'].isin(shown)], 'marks')}\n{notes(records)}\n"


def _tables(records: Sequence[Record], normalizer: str) -> str:
    metrics = shown_metrics(records, normalizer)
    return "\n".join(_table(results_table(records, m, normalizer), normalizer) for m in metrics)


def _table(cells: pd.DataFrame, normalizer: str) -> str:
    """The cells as a table, below a line that says what the numbers are."""
    note = _NORMALIZER_NOTES[normalizer]
    text = to_markdown(formatted(cells))
    return f"**{title_of(cells)}** in percent, lower is better ({note})\n\n{text}"


def _unspaced(records: Sequence[Record]) -> list[str]:
    """The names of the languages that are written without spaces."""
    languages = [find_language(c) for c in sorted({r["config"]["language"] for r in records})]
    return [language.name.capitalize() for language in languages if not language.spaced]


def notes(records: Sequence[Record]) -> str:
    """What a reader of the tables has to know of these records, in one paragraph."""
    said = ["An average stands only where a system was run in every language of its training size."]
    if len({record["config"]["seed"] for record in records}) > 1:
        said.append(
            "± is the sample standard deviation over seeds; an average's, over the seeds that ran "
            "in every language."
        )
    if unspaced := _unspaced(records):
        said.append(
            f"Written without spaces, so its CER comes first: {', '.join(unspaced)}. An average "
            "never mixes the two rates."
        )
    if short := short_of_data(records):
        said.append(f"Trained on fewer clips than the table's size: {', '.join(short)}.")
    conventions = sorted({record["config"]["conventions"] for record in records})
    said.append(f"Conventions: {', '.join(conventions)}.")
    return " ".join(said)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n</details>\n"


def _origins(records: Sequence[Record]) -> str:
    lines = [
        "| Run | Made | Commit | Device | Training | Command |",
        "| :-- | :-- | :-- | :-- | --: | :-- |",
    ]
    for record in sorted(records, key=lambda r: r["run_id"]):
        made, training = record["provenance"], record["training"]
        commit = f"`{made['commit'][:8]}`" if made["commit"] else "none"
        commit += " (changed)" if made["dirty"] else ""
        hardware = made["hardware"]
        on_cpu = hardware["device"] == "cpu"
        device = f"{hardware['cpu']}, {hardware['cores']} cores" if on_cpu else hardware["device"]
        duration = f"{training['seconds'] / 60:.1f} min" if training else "none"
        command = f"`{made['command']}`" if made["command"] else "not recorded"
        day = made["created"].partition("T")[0]
        cells = [f"`{record['run_id']}`", day, commit, device, duration, command]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    trained = sum(record["training"]["seconds"] for record in records if record["training"])
    heard = sum(e["seconds"] for record in records for e in record["evaluations"])
    spent = f"{trained / 60:,.0f} min of training, {heard / 60:,.0f} min of transcribing test sets"
    return "\n".join(lines) + f"\n\nAll of them together: {spent}.\n"


def intervals_block(records: Sequence[Record], folder: str | Path) -> str:
    """Markdown with every rate's interval and the paired differences, from what was said."""
    if not records:
        return "No run is recorded here yet.\n"
    found = resample(records, folder)
    intervals = found.intervals()
    drawn = " / ".join(sorted(set(intervals["blocked on"].dropna())))
    about = (
        f"**{title_of(results_table(records))}** in percent with 95 % intervals: "
        f"{found.draws:,} resampled test sets, drawn by {drawn}; several seeds count as the mean "
        "of their errors"
    )
    differences = found.differences((*COMPARISONS, *variants(records)))
    return f"{about}\n\n{to_markdown(with_intervals(intervals))}\n{_paired(differences)}"


def _paired(differences: pd.DataFrame) -> str:
    about = (
        "In points, below zero where the first is better; 95 % intervals; p of a permutation test, "
        "adjusted (Holm) for all pairs of a column"
    )
    text = f"{about}\n\n{to_markdown(with_intervals(differences), 'Difference')}"
    return _folded("Paired differences", text)


def soft_block(records: Sequence[Record], folder: str | Path) -> str:
    """Markdown of what choosing a branch costs: the systems whose runs were all heard with soft
    gates, held against themselves, each other, and LoRA and full fine-tuning. Below, where runs
    were heard so, what the learned choice has over random ones and over the expert everywhere."""
    found = resample(records, folder, forced=load_forced(folder))
    intervals = found.intervals()
    soft = _forced_rows(intervals, ["soft"])
    parts = ["No run was heard with soft gates yet.\n"]
    if not soft.empty:
        parts = [to_markdown(with_intervals(soft)), _paired(found.differences(_SOFT_COMPARISONS))]
    ways = [way for way in FORCED if way != "soft"]
    rivals = _forced_rows(intervals, ways)
    if not rivals.empty:
        systems = sorted(set(intervals["system"]), key=row_place)
        pairs = [(s, row) for s in systems for w in ways if (row := forced_row(s, w)) in systems]
        differences = _paired(found.differences(pairs))
        parts += [_RIVALS, to_markdown(with_intervals(rivals)), differences]
    return "\n".join(parts)


_RIVALS = """\
The same runs without a learned choice: the expert everywhere (*always open*), or each position at
random. *Random gates* give the expert the share that the learned ones gave it in each layer and
test set; *evenly random*, the mean of a side in all its layers, so that it is lost too which layers
lean on the expert. Several draws count as the mean of their errors.
"""


def _forced_rows(intervals: pd.DataFrame, ways: Sequence[str]) -> pd.DataFrame:
    """The rows of gates that are forced in one of these ways."""
    systems = set(intervals["system"])
    forced = {forced_row(system, way) for system in systems for way in ways}
    return intervals[intervals["system"].isin(forced)]


# What choosing costs; whether distillation helps where nothing is chosen; and the rivals.
_SOFTLY = {method: forced_row(LABELS[method]) for method in WITH_EXPERTS}
_SOFT_COMPARISONS = (
    *((_SOFTLY[method], method) for method in WITH_EXPERTS),
    *((_SOFTLY[method], _SOFTLY["clsr"]) for method in DISTILLED),
    *((_SOFTLY[method], rival) for method in WITH_EXPERTS for rival in ("lora", "full")),
)


def variants(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Each row with changed settings, and the rows that it is to be held against: its method's,
    and of experts CLSR's of the same settings, and LoRA's."""
    methods = (LABELS[record["config"]["method"]] for record in records)
    rows = dict(zip(row_labels(records), methods, strict=True))
    pairs = []
    for row, method in sorted(rows.items(), key=lambda item: row_place(item[0])):
        plain, _, settings = row.partition(" (")
        if row != method:
            alone = f"{LABELS['clsr']} ({settings}"
            rivals = [alone, LABELS["lora"]] if plain.startswith(LABELS["clsr"]) else []
            against = dict.fromkeys([plain, method, *rivals])
            pairs += [(row, rival) for rival in against if rival != row]
    return pairs


# marker name -> folder below results/, and what makes the block of its records; a page shows the
# blocks whose markers it holds
_BLOCKS: dict[str, tuple[str, Callable[[Sequence[Record], Path], str]]] = {
    "headline": (".", lambda records, _: headline_block(records)),
    "demo": ("demo", lambda records, _: readme_block(records)),
    "full": (".", lambda records, _: readme_block(records)),
    "intervals": (".", intervals_block),
    "soft": (".", soft_block),
}


def updated_readme(text: str, results: str | Path, source: str | Path = "README.md") -> str:
    """``text`` with what stands between its result markers made anew from the records."""
    found = [name for name in _BLOCKS if _marker(f"results:{name}", "start") in text]
    if not found:
        raise UserError(
            f"{source}: holds no {_marker('results:headline', 'start')}, expected it, or one of "
            f"{', '.join(_BLOCKS)}, where the tables go: add it, and its end below it"
        )
    for name in found:
        below, made = _BLOCKS[name]
        folder = Path(results) / below
        text = replace_between(text, f"results:{name}", made(load_records(folder), folder), source)
    return text


def _marker(name: str, edge: str) -> str:
    return f"<!-- {name}:{edge} -->"


def replace_between(text: str, name: str, block: str, source: str | Path) -> str:
    """``text`` with ``block`` between its markers ``<!-- name:start -->`` and ``name:end``.

    Raises UserError, naming ``source``, when it does not hold exactly one such pair.
    """
    start, end = _marker(name, "start"), _marker(name, "end")
    before, _, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if start not in text or not closed or start in rest:
        raise UserError(
            f"{source}: {start} has no {end} of its own below it, expected one pair: add the "
            "missing marker or remove the second"
        )
    return f"{before}{start}\n{block}{end}{after}"


def update_readme(
    readme: str | Path = "README.md", results: str | Path = "results", check: bool = False
) -> bool:
    """Bring a page's blocks of results up to date; with ``check`` only look.

    Returns whether they already were.
    """
    path = Path(readme)
    try:
        old = path.read_bytes().decode("utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read ({reason}): pass --readme FILE") from None
    new = updated_readme(old, results, path)
    if new != old and not check:
        write_atomic(path, new)
    return new == old


NORMALIZER = "marks"
PAGE = "reproduce.md"
_SECTIONS = {".": "Results", "demo": "The embedded demo"}  # folder below results/ -> heading

_HEAD = f"""\
# Every number, and how to get it again

Made by `python -m distilwhisper_lib results readme` from the records beside it; `make test` fails
when it is stale.

**From what was said**, in seconds: `python -m distilwhisper_lib results check --published` scores
every published hypothesis again, under both normalisers, and compares each rate and count with its
record. Tolerance: none. `make test` does it too.

**From training**: the command of a run, below, in a fresh clone with the same data and models (what
these are, [README.md](README.md) says for the results here; the demo brings its own). It writes
the same files below `outputs/results/`; `python -m distilwhisper_lib results publish RUN...` copies
them here, and `git diff results/` shows what came out otherwise. Tolerance: none on the same kind
of machine with the same versions and number of threads: the record's
`training.weights_sha256` is then the same, and `training.teacher_targets.sha256` where a teacher
taught. Elsewhere sums round otherwise, and training in bfloat16 makes much of that: of the eleven
runs of the miniature that were trained again with another number of threads, or from targets that
another number had built, half of the rates moved by less than 0.8 points, the furthest by 3.6.

These repeats, and those that came out equal to the bit, are in `benchmarks/repeats.json`, made by
`python -m benchmarks.study.repeats`.

The tables below are the headline's, with marks kept. Everything else is made of the same files:
CER, Whisper's normaliser, averages, intervals, differences and soft gates by
`python -m distilwhisper_lib results readme` (in [README.md](README.md)), gate shares and
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
    for title, block in rated(records, HEADLINE, NORMALIZER).groupby("training", sort=False):
        lines = [
            f"### {title}\n",
            "| Row | Column | Value | Runs |",
            "| :-- | :-- | --: | :-- |",
        ]
        for system in sorted(block["system"].unique(), key=row_place):
            cells = block[block["system"] == system].groupby(["domain", "language", "metric"])
            for (domain, language, rate), cell in cells:
                runs = sorted(record["run_id"] for record in cell["record"])
                links = ", ".join(f"[{run}]({_place(folder, run)})" for run in runs)
                column = f"{DOMAINS[domain]} {language}, {rate.upper()}"
                value = statistics.fmean(cell["error"])
                lines.append(f"| {system} | {column} | {value:.2f} | {links} |")
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
