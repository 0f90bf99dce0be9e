"""Everything that the records of a results folder tell, as one HTML page without dependencies.

Tables, figures (inline SVG), error analysis and where each number is from. The page loads nothing:
no script, no font, no address. Every text is escaped.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from .alignment import Alignment
from .costs import cost_table, formatted_costs
from .error_analysis import (
    LOOP_RULE,
    error_by_length,
    error_kinds,
    hallucinations,
    normalizers_side_by_side,
    worst_utterances,
)
from .errors import UserError
from .exports import formatted
from .forced_gates import load_forced
from .forced_plots import forced_changes
from .forgetting import forgetting_table
from .gates import load_gates
from .hypotheses import Hypotheses
from .leaks import write_public
from .plots import gate_shares, style
from .published import compared, read_published_values
from .readme import notes
from .records import DOMAINS, Record, load_records
from .rescoring import rescore
from .result_plots import error_kinds_bars, interval_plot, length_lines, results_bars
from .significance import NO_HYPOTHESES, Resampled, resample
from .tables import LABELS, blocks, results_tables, shown_metrics, title_of

PUBLISHED = "published.csv"
_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: .8rem 0; font-size: .87rem; display: block;
  overflow-x: auto; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; }
thead th { border-bottom: 2px solid #888; } tbody th { text-align: left; font-weight: normal; }
td.text, th.text { text-align: left; } th.span { text-align: center; }
svg { max-width: 100%; height: auto; } code { font-size: .85em; }
details { margin: .6rem 0; } summary { cursor: pointer; }
.note { color: #555; max-width: 50rem; }
"""


def write_report(folder: str | Path, published: str | Path | None = None) -> Path | None:
    """Write ``<folder>/report.html`` from the folder's records; None when it has none.

    ``published`` is the file of the paper's values, ``results/published.csv`` unless given. Raises
    UserError for a record, hypotheses file or published value that is not as it must be.
    """
    folder = Path(folder)
    records = load_records(folder)
    if not records:
        return None
    return write_public(folder / "report.html", report_html(records, folder, published))


def report_html(
    records: Sequence[Record], folder: str | Path, published: str | Path | None = None
) -> str:
    """The page's text: the same for the same records and files, whenever it is made."""
    values = read_published_values(published or Path("results") / PUBLISHED)
    texts = Hypotheses(folder)
    resampled = resample(records, texts)
    sections = {
        "Error rates": _error_rates(records),
        "Beside the published values": _beside(records, values),
        "How sure": _how_sure(resampled),
        "What kind of errors": _errors(records, texts),
        "Worst utterances": _worst(records, texts),
        "What normalisation does": _normalizers(records),
        "What was forgotten": _forgotten(records, texts),
        "What it costs": _costs(records),
        "Gates": _gates(folder),
        "Where the numbers are from": _provenance(records, texts),
    }
    contents = " · ".join(
        f'<a href="#s{n}">{html.escape(title)}</a>' for n, title in enumerate(sections)
    )
    body = "".join(
        f'<h2 id="s{n}">{html.escape(title)}</h2>{content}'
        for n, (title, content) in enumerate(sections.items())
    )
    kind = "the embedded demo" if records[0]["demo"] else "full runs"
    newest = max(record["provenance"]["created"] for record in records)
    about = f"{kind}: {len(records)} runs, the latest of {newest.partition('T')[0]}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Multilingual DistilWhisper: results</title><style>{_CSS}</style></head><body>"
        f"<h1>Multilingual DistilWhisper: results</h1>{_note(about.capitalize() + '.')}"
        f"<p>{contents}</p>{body}</body></html>\n"
    )


# ------------------------------------------------------------------------------------- sections


def _error_rates(records: Sequence[Record]) -> str:
    parts = [_note(f"Per cent, lower is better. {notes(records)}")]
    parts += _rates(records, "marks", "marks kept")
    whisper = "".join(_rates(records, "whisper", "marks dropped"))
    parts.append(_folded("The same under Whisper's normaliser", whisper))
    for title, table in results_tables(records).items():
        parts.append(_figure(title, results_bars, table))
    return "".join(parts)


def _rates(records: Sequence[Record], normalizer: str, note: str) -> list[str]:
    parts = []
    for metric in shown_metrics(records, normalizer):
        tables = results_tables(records, metric, normalizer)
        parts.append(f"<h3>{title_of(tables)}, {note}</h3>{_table(formatted(tables))}")
    return parts


def _beside(records: Sequence[Record], values: Sequence[Any]) -> str:
    if not values:
        return _note(
            f"results/{PUBLISHED} holds no value yet: whoever has the paper open can fill it, with "
            "the place each number stands."
        )
    text = compared(results_tables(records, "wer", "whisper"), values)
    sources = ", ".join(dict.fromkeys(value.source for value in values))
    return _table(text) + _note(f"WER under the paper's normaliser. Sources: {sources}.")


def _how_sure(resampled: Resampled) -> str:
    intervals, tests = resampled.intervals(), resampled.differences()
    if intervals["error"].isna().all():
        return _note(f"{NO_HYPOTHESES.capitalize()}: nothing to resample. Run the notebooks again.")
    blocked = ", ".join(intervals["blocked on"].dropna().unique())
    parts = [
        _note(
            f"95 % percentile intervals of a bootstrap that draws whole blocks ({blocked}). They "
            "tell how the test set might have come out, not how training might. Differences are "
            "paired: both systems on the same drawn clips. p, two-sided, is a permutation test's: "
            "the share of all ways to swap the two systems block by block (or of "
            f"{resampled.draws:,} random ones, where there are more) that give a difference at "
            "least as large; p (Holm) is adjusted for all pairs of one test set. Where blocks are "
            "few, intervals are too narrow, and p is right but cannot get small: the note says so."
        )
    ]
    for title in resampled.found:
        parts.append(_figure(title, interval_plot, intervals[intervals["training"] == title]))
    tests = tests.dropna(subset=["difference"])
    average = tests[tests["language"] == "average"]
    shown = _compact(average if len(average) else tests)
    parts.append(f"<h3>Differences, in points</h3>{_table(shown)}")
    parts.append(_folded("Differences in every language", _table(_compact(tests))))
    parts.append(_folded("Every interval", _table(_compact(intervals))))
    return "".join(parts)


def _errors(records: Sequence[Record], texts: Hypotheses) -> str:
    kinds, lengths = error_kinds(records), error_by_length(records, texts)
    parts = []
    for title in blocks(records):
        parts.append(_figure(title, error_kinds_bars, kinds[kinds["training"] == title]))
        if len(lengths):
            mine = lengths[lengths["training"] == title]
            parts.append(_figure(f"{title}: error by clip length", length_lines, mine))
    parts.append(_folded("Substitutions, deletions, insertions", _table(_compact(kinds))))
    parts.append("<h3>Loops and hallucinations</h3>")
    parts.append(
        _note(
            f"Per cent of the clips. Loops: {LOOP_RULE}; where the reference has one too, it does "
            "not count. Too long: more characters per second than the bound, half "
            "as much again as the fastest references of the test set. Cut: ended by the token "
            "limit."
        )
    )
    found = hallucinations(records, texts)
    parts.append(_table(_compact(_pooled(found))) + _folded("By language", _table(_compact(found))))
    return "".join(parts)


def _pooled(found: pd.DataFrame) -> pd.DataFrame:
    """Means over languages and seeds of what `hallucinations` found."""
    shown = [name for name in ("loops", "too long", "cut", "empty") if name in found]
    keys = ["training", "system", "domain"]
    return found.groupby(keys, sort=False)[shown].mean().reset_index()


def _worst(records: Sequence[Record], texts: Hypotheses) -> str:
    parts = [_note("Struck out: not heard. Underlined: not said. Texts as normalised.")]
    places = {
        (record["config"]["language"], evaluation["domain"])
        for record in records
        for evaluation in record["evaluations"]
        if evaluation["language"] == record["config"]["language"]
    }
    methods = [name for name in reversed(LABELS) if any(_is(r, name) for r in records)]
    for language, domain in sorted(places):
        table = worst_utterances(records, texts, language, methods[0], domain)
        title = f"{LABELS[methods[0]]}, {language}, {DOMAINS[domain]}"
        parts.append(_folded(title, Alignment(table)._repr_html_()))
    return "".join(parts)


def _is(record: Record, method: str) -> bool:
    return record["config"]["method"] == method


def _normalizers(records: Sequence[Record]) -> str:
    return _note(
        "The same hypotheses under each named normaliser. Whisper's rule drops combining marks, "
        "so Thai tones and Tamil vowel signs no longer count, and counts Thai letter by letter: "
        "a difference between the columns is one of spelling, not of hearing."
    ) + _table(_compact(normalizers_side_by_side(records)))


def _forgotten(records: Sequence[Record], texts: Hypotheses) -> str:
    table = forgetting_table(records, texts)
    if table.empty:
        return _note("No run listened to languages that it was not trained on.")
    return _note(
        "The student before and after training on another language, on the same clips. Same "
        "outputs: per cent of the clips where both say the same to the letter. Experts promise "
        "100, because other languages and translation never meet them. Translations are compared "
        "with the untrained student's only: their references are transcripts. A LoRA adapter can "
        "be taken off by hand; here it is left on, as it is when merged."
    ) + _table(_compact(table))


def _costs(records: Sequence[Record]) -> str:
    table = formatted_costs(cost_table(records))
    several = table.index.unique("training").size > 1
    return _note("Means over runs; the peak is the largest.") + _table(
        table if several else table.droplevel("training")
    )


def _gates(folder: str | Path) -> str:
    if not any((Path(folder) / "gates").glob("*.json")):
        return _note("No run with gates yet.")
    title = "Share of expert routing per layer, with 95 % intervals"
    shares = _figure(title, gate_shares, load_gates(folder))
    return shares + _forced(folder)


def _forced(folder: str | Path) -> str:
    files = load_forced(folder)
    if not files:
        return _note("What forced gates change: no run of distilwhisper_lib.counterfactuals yet.")
    about = _note(
        "The same clips with all gates open, all closed, and the expert of one layer off at a "
        "time, against the gates as learned: 95 % intervals, paired, of a bootstrap that draws "
        "whole speakers. Too narrow where there are fewer than 20 blocks."
    )
    return about + "".join(
        _figure(f"{forced['run_id']}: gates forced", forced_changes, forced) for forced in files
    )


def _provenance(records: Sequence[Record], texts: Hypotheses) -> str:
    done = rescore(records, texts)
    said = [*done.findings, str(done)]
    if done.unpublished:
        said.append(f"{done.unpublished} evaluations have {NO_HYPOTHESES}.")
    rows = [
        {
            "run": record["run_id"],
            "made": record["provenance"]["created"],
            "commit": record["provenance"]["commit"] or "none",
            "changed": "yes" if record["provenance"]["dirty"] else "no",
            "device": record["provenance"]["hardware"]["device"],
            "conventions": record["config"]["conventions"],
            "versions": ", ".join(
                f"{name} {version}" for name, version in record["provenance"]["versions"].items()
            ),
            "command": record["provenance"]["command"] or "not recorded",
        }
        for record in records
    ]
    models = sorted(
        {
            f"{role} {model['name']} (SHA-256 {model['sha256'] or 'unknown'})"
            for record in records
            for role, model in record["models"].items()
            if model
        }
    )
    return (
        "".join(map(_note, said))
        + _table(pd.DataFrame(rows))
        + "".join(_note(model) for model in models)
    )


# ---------------------------------------------------------------------------------------- parts


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def _figure(title: str, draw: Callable[[Any], Figure], data: Any) -> str:
    """The figure as inline SVG, or the sentence that says why there is none."""
    try:
        figure = draw(data)
    except UserError as error:
        return _note(f"{title}: {error}")
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids are only unique within one figure: several of them share the page.
    mark = f"f{zlib.crc32(svg.encode('utf-8')):x}"
    svg = re.sub(r'\bid="', f'id="{mark}', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{mark}", svg)
    return f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"


def _compact(table: pd.DataFrame) -> pd.DataFrame:
    """Columns that say the same in every row, or nothing, are left out; numbers become text."""
    table = table.copy()
    for name in ("training", "seed", "note", "blocked on", "clips"):
        if name in table and len(table) and table[name].fillna("").nunique() == 1:
            if name != "note" or not str(table[name].iloc[0]):
                table = table.drop(columns=name)
    for name in table.columns:
        table[name] = [_text(name, value) for value in table[name]]
    return table


def _text(name: str, value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if name == "domain":
        return DOMAINS[value]
    if isinstance(value, float):
        if value.is_integer() and name in ("clips", "blocks"):
            return f"{value:,.0f}"
        places = 4 if name in ("p", "p (Holm)") else 1
        return f"{value:.{places}f}"
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)


_WORDS = ("system", "against", "domain", "language", "training", "note", "blocked on", "task",
          "trained on", "heard", "metric", "run", "made", "commit", "changed", "device",
          "conventions", "versions", "command")  # fmt: skip


def _table(text: pd.DataFrame) -> str:
    """A table of text as HTML, every cell escaped. An outer row level becomes lines of its own."""
    if text.empty:
        return _note("Nothing to show.")
    labelled = text.index.nlevels > 1 or text.index.name is not None
    columns = [column if isinstance(column, tuple) else (column,) for column in text.columns]
    words = [column[-1] in _WORDS for column in columns]
    levels = len(columns[0])
    lines = [_spans([column[: level + 1] for column in columns], labelled)
             for level in range(levels - 1)]  # fmt: skip
    last = [_cell("th", text.index.names[-1] or "", True)] if labelled else []
    last += [_cell("th", DOMAINS.get(c[-1], c[-1]), w) for c, w in zip(columns, words, strict=True)]
    lines.append("".join(last))
    rows, section = [], None
    for label, line in zip(text.index, text.itertuples(index=False, name=None), strict=True):
        *outer, label = label if isinstance(label, tuple) else (label,)
        if outer and outer != section:
            section = outer
            rows.append(f'<th colspan="{len(columns) + 1}"><b>{html.escape(outer[0])}</b></th>')
        cells = f"<th>{html.escape(str(label))}</th>" if labelled else ""
        rows.append(
            cells + "".join(_cell("td", str(v), w) for v, w in zip(line, words, strict=True))
        )
    head, body = ("".join(f"<tr>{row}</tr>" for row in part) for part in (lines, rows))
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _spans(heads: Sequence[tuple[str, ...]], labelled: bool) -> str:
    """A heading line over equal neighbours."""
    cells = ["<th></th>"] if labelled else []
    for head, group in itertools.groupby(heads):
        name = html.escape(DOMAINS.get(head[-1], head[-1]))
        cells.append(f'<th class="span" colspan="{len(list(group))}">{name}</th>')
    return "".join(cells)


def _cell(tag: str, text: str, is_words: bool) -> str:
    kind = ' class="text"' if is_words else ""
    return f"<{tag}{kind}>{html.escape(text)}</{tag}>"
