"""Tables from run records, and the README's result blocks.

Records are all that is read, so any table can be made again without decoding or training.

    python -m distilwhisper_lib.results readme [--check]
    python -m distilwhisper_lib.results show [--demo]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from .config import PRESETS, RunConfig, resolve
from .errors import UserError
from .files import write_atomic
from .languages import find_language
from .records import DOMAINS, NORMALIZERS, Record, load_records

RATES = ("wer", "cer")
METRICS = ("headline", *RATES)
AVERAGE = "average"
NOT_RUN = "not run"

# Methods in the paper's order, with the names its tables give them.
LABELS = {
    "teacher": "Teacher zero-shot",
    "zero_shot": "Student zero-shot",
    "full": "+ full fine-tuning",
    "lora": "+ LoRA",
    "clsr": "+ CLSR",
    "kl": "+ CLSR + KL",
    "js": "+ CLSR + JS",
}


def results_table(
    records: Sequence[Record], metric: str = "headline", normalizer: str = "marks"
) -> pd.DataFrame:
    """Error rates in percent: one row per system, one column per (domain, language).

    ``metric``: "wer", "cer" or, by default, "headline": WER, but CER for languages that are
    written without spaces, whose columns say so, ``"th (CER)"``. ``table.attrs["title"]`` names
    what the table shows.

    Rows stand in the paper's order, systems without a run included (NaN). Each domain ends with
    an ``average`` column, which is filled only where the row has all of the languages that it
    averages. Beside a CER column that is ``average (WER)``, of the other languages alone.
    A record counts for the language it was run for. Several seeds become their mean; their
    sample standard deviation is in ``table.attrs["sd"][row][(domain, language)]`` and the number
    of seeds in ``table.attrs["seeds"]``. Runs of other presets, and runs of one method with
    different settings, get rows of their own, which name the preset or the settings that differ.
    """
    _check_choice("metric", metric, METRICS)
    _check_choice("normalizer", normalizer, NORMALIZERS)
    cells = _collect(records, metric, normalizer)
    columns = _columns(cells, metric)
    headings = _headings(columns, metric)
    rows = _row_labels(records)
    summary = {row: _summarise(cells.get(row, {}), columns) for row in rows}
    values = [[summary[row][column][0] for column in columns] for row in rows]
    index = pd.MultiIndex.from_arrays(
        [[domain for domain, _ in headings.values()], [name for _, name in headings.values()]],
        names=["domain", "language"],
    )
    table = pd.DataFrame(values, pd.Index(rows, name="system"), index, dtype=float)
    table.attrs = {
        "title": " or ".join(m.upper() for m in RATES if m in columns.values()),
        "normalizer": normalizer,
        "sd": {row: {headings[c]: s[1] for c, s in line.items()} for row, line in summary.items()},
        "seeds": {
            row: {headings[c]: s[2] for c, s in line.items()} for row, line in summary.items()
        },
    }
    return table


def _check_choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"unknown {what} {value!r}: expected one of {', '.join(known)}")


Column = tuple[str, str]  # domain, and language or AVERAGE
# row label -> column -> seed -> percent
Cells = dict[str, dict[Column, dict[int, float]]]


def _shown(language: str, metric: str) -> str:
    """The rate that a table of this metric shows for a language."""
    return find_language(language).headline if metric == "headline" else metric


def _collect(records: Sequence[Record], metric: str, normalizer: str) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(dict))
    for record, label in zip(records, _labels(records), strict=True):
        language, seed = record["config"]["language"], record["config"]["seed"]
        rate = _shown(language, metric)
        for evaluation in record["evaluations"]:
            if evaluation["language"] != language:
                continue
            seeds = cells[label][evaluation["domain"], language]
            if seed in seeds:
                raise UserError(
                    f"run {record['run_id']} gives {label!r} a second {evaluation['domain']} "
                    f"result for {language} with seed {seed}: pass each run once"
                )
            seeds[seed] = 100.0 * evaluation["scores"][normalizer][rate][rate]
    return cells


def _columns(cells: Cells, metric: str) -> dict[Column, str]:
    """Every column in order, with the rate that it shows.

    An average is of one rate: the WER of the languages that show it, the CER where none does.
    """
    found = {column for row in cells.values() for column in row}
    columns = {}
    for domain in DOMAINS:
        shown = {name: _shown(name, metric) for d, name in sorted(found) if d == domain}
        columns |= {(domain, name): rate for name, rate in shown.items()}
        if shown:
            columns[domain, AVERAGE] = "wer" if "wer" in shown.values() else "cer"
    return columns


def _headings(columns: dict[Column, str], metric: str) -> dict[Column, Column]:
    """Each column as the table calls it: with its rate, where that is not the usual or only one."""
    usual = "wer" if metric == "headline" else metric
    headings = {}
    for (domain, name), rate in columns.items():
        alone = len({r for (d, _), r in columns.items() if d == domain}) == 1
        plain = rate == usual and (alone or name != AVERAGE)
        headings[domain, name] = (domain, name if plain else f"{name} ({rate.upper()})")
    return headings


def _summarise(
    row: dict[Column, dict[int, float]], columns: dict[Column, str]
) -> dict[Column, tuple[float, float, int]]:
    """(mean, standard deviation, seeds) per column; NaN where there is nothing to say."""
    filled = dict(row)
    for average in [column for column in columns if column[1] == AVERAGE]:
        averaged = [
            column
            for column, rate in columns.items()
            if column[0] == average[0] and column != average and rate == columns[average]
        ]
        if all(row.get(column) for column in averaged):
            # The spread of an average is that of the seeds which ran in every language.
            seeds = set.intersection(*(set(row[column]) for column in averaged))
            filled[average] = {
                seed: statistics.fmean(row[column][seed] for column in averaged) for seed in seeds
            } or {-1: statistics.fmean(statistics.fmean(row[c].values()) for c in averaged)}
    return {column: _mean_sd(list(filled.get(column, {}).values())) for column in columns}


def _mean_sd(values: list[float]) -> tuple[float, float, int]:
    mean = statistics.fmean(values) if values else math.nan
    return mean, statistics.stdev(values) if len(values) > 1 else math.nan, len(values)


def _row_labels(records: Sequence[Record]) -> list[str]:
    """Every row of the table in order: preset by preset, all systems, then their variants."""
    presets = sorted({record["preset"] for record in records})
    several = len(presets) > 1
    present = {(r["preset"], r["config"]["method"]): set() for r in records}
    for record, label in zip(records, _labels(records), strict=True):
        present[record["preset"], record["config"]["method"]].add(label)
    rows = []
    for preset in presets or [""]:
        for method in LABELS:
            plain = _label(method, preset if several else None)
            rows += [plain, *sorted(present.get((preset, method), set()) - {plain})]
    return rows


def _label(method: str, preset: str | None, differs: Iterable[str] = ()) -> str:
    note = "; ".join(part for part in (preset, ", ".join(differs)) if part)
    return f"{LABELS[method]} ({note})" if note else LABELS[method]


def _labels(records: Sequence[Record]) -> list[str]:
    """The row of each record; settings are named only where they differ from the preset's."""
    several = len({record["preset"] for record in records}) > 1
    usual = _usual_settings(records)
    labels = []
    for record in records:
        preset, method = record["preset"], record["config"]["method"]
        settings, base = _settings(record), usual[preset, method]
        differs = [
            f"{name}={settings[name]}"
            for name in sorted(settings.keys() & base.keys())
            if settings[name] != base[name]
        ]
        labels.append(_label(method, preset if several else None, differs))
    return labels


def _usual_settings(records: Sequence[Record]) -> dict[tuple[str, str], dict[str, Any]]:
    """What a run without overrides has; for a preset of elsewhere, what most of its runs have."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["preset"], record["config"]["method"]].append(_settings(record))
    return {
        (preset, method): _without_identity(resolve(method, preset).to_dict())
        if preset in PRESETS
        else max(found, key=found.count)
        for (preset, method), found in groups.items()
    }


# What does not make a different system: whose run it is, and (unhashed) where and on what it ran.
_NOT_SETTINGS = {"preset", "method", "language", "seed"} | {
    field.name for field in dataclasses.fields(RunConfig) if not field.metadata.get("hashed", True)
}


def _settings(record: Record) -> dict[str, Any]:
    return _without_identity(record["config"])


def _without_identity(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _NOT_SETTINGS}


# -------------------------------------------------------------------------------------- exports


def formatted(table: pd.DataFrame) -> pd.DataFrame:
    """The table as text: one decimal, mean ± standard deviation, "not run" where empty."""
    spread = table.attrs.get("sd", {})
    text = table.astype(object)
    for row in table.index:
        for column in table.columns:
            sd = spread.get(row, {}).get(column, math.nan)
            text.loc[row, column] = _cell(table.loc[row, column], sd)
    return text


def _cell(mean: float, sd: float) -> str:
    if math.isnan(mean):
        return NOT_RUN
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def to_markdown(table: pd.DataFrame) -> str:
    """The table as a GitHub Markdown table, numbers to the right."""
    heads = [f"{DOMAINS.get(domain, domain)}<br>{name}" for domain, name in table.columns]
    body = formatted(table)
    lines = [["System", *heads], [":--", *["--:"] * len(heads)]]
    lines += [[row, *body.loc[row]] for row in body.index]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_csv(table: pd.DataFrame, path: str | Path) -> Path:
    """The same cells as CSV with one heading line, "in_domain ca" and so on; returns the path."""
    body = formatted(table)
    body.columns = [f"{domain} {name}" for domain, name in body.columns]
    buffer = io.StringIO()
    body.to_csv(buffer, index_label="system", lineterminator="\n")
    return write_atomic(path, buffer.getvalue())


def write_tables(records: Sequence[Record], folder: str | Path) -> list[str]:
    """Every table (metric x normaliser) as CSV and Markdown; returns the files written."""
    written = []
    for metric in METRICS:
        for normalizer in NORMALIZERS:
            table = results_table(records, metric, normalizer)
            path = Path(folder) / f"{metric}-{normalizer}"
            written.append(to_csv(table, path.with_suffix(".csv")))
            written.append(write_atomic(path.with_suffix(".md"), to_markdown(table)))
    return [str(path) for path in written]


def overview(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: what ran, how long it trained, how much of the model it trains."""
    rows = []
    for record in records:
        config, training = record["config"], record["training"] or {}
        rows.append(
            {
                "method": config["method"],
                "language": config["language"],
                "seed": config["seed"],
                "trained values": training.get("trainable_parameters", 0),
                "minutes": round(training.get("seconds", 0.0) / 60, 1),
                "commit": (record["provenance"]["commit"] or "none")[:8],
                "created": record["provenance"]["created"],
            }
        )
    order = {method: place for place, method in enumerate(LABELS)}
    return pd.DataFrame(rows).sort_values(
        ["language", "seed", "method"],
        key=lambda column: column.map(order) if column.name == "method" else column,
        ignore_index=True,
    )


# --------------------------------------------------------------------------------------- README

_NORMALIZER_NOTES = {
    "marks": "marks kept: the kit's own rule, which keeps vowel signs and tone marks",
    "whisper": "Whisper's rule, which drops them and splits letters apart: as the public code",
}


def readme_block(records: Sequence[Record]) -> str:
    """Markdown with the WER and CER tables of both normalisers and where each number is from."""
    if not records:
        return "No run is recorded here yet.\n"
    parts = [_tables(records, "marks"), _notes(records)]
    parts.append(_folded("The same with Whisper's normaliser", _tables(records, "whisper")))
    parts.append(_folded("Date, commit, hardware and command of every run", _origins(records)))
    return "\n".join(parts)


def _tables(records: Sequence[Record], normalizer: str) -> str:
    note = _NORMALIZER_NOTES[normalizer]
    metrics = ["headline", "cer"]
    if normalizer == "whisper" and _unspaced(records):
        metrics.insert(1, "wer")  # Whisper's rule sets their letters apart: what the paper compares
    tables = [results_table(records, metric, normalizer) for metric in metrics]
    return "\n".join(
        f"**{table.attrs['title']}** in percent, lower is better ({note})\n\n{to_markdown(table)}"
        for table in tables
    )


def _unspaced(records: Sequence[Record]) -> list[str]:
    """The names of the languages that are written without spaces."""
    languages = [find_language(c) for c in sorted({r["config"]["language"] for r in records})]
    return [language.name.capitalize() for language in languages if not language.spaced]


def _notes(records: Sequence[Record]) -> str:
    notes = ["An average stands only where a system was run in every language of the table."]
    if len({record["config"]["seed"] for record in records}) > 1:
        notes.append("± is the sample standard deviation over seeds.")
    if unspaced := _unspaced(records):
        notes.append(
            f"Written without spaces, so its CER comes first: {', '.join(unspaced)}. An average "
            "never mixes the two rates."
        )
    conventions = sorted({record["config"]["conventions"] for record in records})
    notes.append(f"Conventions: {', '.join(conventions)}.")
    return " ".join(notes) + "\n"


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
    return "\n".join(lines) + "\n"


_BLOCKS = {"demo": "demo", "full": "."}  # marker name -> folder below results/


def updated_readme(text: str, results: str | Path, source: str | Path = "README.md") -> str:
    """``text`` with what stands between its result markers made anew from the records."""
    found = [name for name in _BLOCKS if _marker(name, "start") in text]
    if not found:
        raise UserError(
            f"{source}: holds no {_marker('demo', 'start')}, expected it where the tables go: add "
            f"it, and {_marker('demo', 'end')} below it"
        )
    for name in found:
        block = readme_block(load_records(Path(results) / _BLOCKS[name]))
        text = replace_between(text, f"results:{name}", block, source)
    return text


def _marker(name: str, edge: str) -> str:
    return f"<!-- results:{name}:{edge} -->"


def replace_between(text: str, name: str, block: str, source: str | Path) -> str:
    """``text`` with ``block`` between its markers ``<!-- name:start -->`` and ``name:end``.

    Raises UserError, naming ``source``, when it does not hold exactly one such pair.
    """
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
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
    """Bring the README's result blocks up to date; with ``check`` only look.

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


def shown_tables(records: Sequence[Record], normalizer: str = "marks") -> str:
    """The WER and CER tables as aligned text for a terminal."""
    if not records:
        return "No run is recorded here yet.\n"
    parts = []
    for metric in ("headline", "cer"):
        table = results_table(records, metric, normalizer)
        body = formatted(table)
        body.columns = [f"{DOMAINS[domain]} {name}" for domain, name in body.columns]
        title = f"{table.attrs['title']} in percent, lower is better (normaliser: {normalizer})"
        parts.append(f"{title}\n{body.rename_axis(None).to_string()}\n")
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib.results", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    readme = commands.add_parser("readme", help="rewrite the README's tables from the records")
    readme.add_argument("--check", action="store_true", help="only look: exit 1 when stale")
    readme.add_argument("--readme", default="README.md", metavar="FILE")
    readme.add_argument("--results", default="results", metavar="FOLDER")
    readme.set_defaults(call=_readme_command)
    show = commands.add_parser("show", help="print the tables and where the figures are")
    show.add_argument("--demo", action="store_true", help="the demo's instead of the full results")
    show.add_argument("--results", default="results", metavar="FOLDER")
    show.set_defaults(call=_show_command)
    given = parser.parse_args(arguments)
    try:
        status = given.call(given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _readme_command(given: argparse.Namespace) -> int:
    if update_readme(given.readme, given.results, given.check):
        print(f"{given.readme}: result tables are up to date")
        return 0
    if given.check:
        print(
            f"{given.readme}: result tables are stale: run `python -m distilwhisper_lib.results "
            "readme`",
            file=sys.stderr,
        )
        return 1
    print(f"{given.readme}: result tables rewritten")
    return 0


def _show_command(given: argparse.Namespace) -> int:
    folder = Path(given.results) / ("demo" if given.demo else ".")
    records = load_records(folder)
    print(shown_tables(records), end="")
    figures = sorted((folder / "figures").glob("*.png"))
    if figures:
        print(f"\nFigures in {folder / 'figures'}: {', '.join(path.name for path in figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
