"""Everything that the records of a results folder tell, as one HTML page without dependencies.

Tables, figures (inline SVG), error analysis and where each number is from. The page loads nothing:
no script, no font, no address.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import (
    CAME_WITH_KIT,
    DOMAINS,
    ORIGIN,
    PUBLISHED_RESULTS,
    Record,
)
from distilwhisper_lib.gates.files import load_gates
from distilwhisper_lib.gates.forced import load_forced
from distilwhisper_lib.gates.forced_plots import forced_changes
from distilwhisper_lib.gates.routes import gate_shares
from distilwhisper_lib.io.leaks import write_public
from distilwhisper_lib.report import html as page
from distilwhisper_lib.report.pages import notes
from distilwhisper_lib.report.published import PUBLISHED, compared, read_published_values
from distilwhisper_lib.report.rescoring import rescore
from distilwhisper_lib.results.costs import cost_table, forgetting_table, formatted_costs
from distilwhisper_lib.results.error_analysis import (
    LOOP_RULE,
    error_by_length,
    error_kinds,
    hallucinations,
    normalizers_side_by_side,
    worst_utterances,
)
from distilwhisper_lib.results.exports import formatted
from distilwhisper_lib.results.frame import blocks, evaluations, needs_no_title, row_place
from distilwhisper_lib.results.hypotheses import Hypotheses
from distilwhisper_lib.results.places import files_of
from distilwhisper_lib.results.plots import (
    error_kinds_bars,
    interval_plot,
    length_lines,
    results_bars,
)
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.results.significance import NO_HYPOTHESES, Resampled, resample
from distilwhisper_lib.results.tables import results_table, shown_metrics, title_of
from distilwhisper_lib.scoring.alignment import Alignment


def write_report(folder: str | Path, records: Sequence[Record] | None = None) -> Path | None:
    """Write ``<folder>/report.html``, of the folder's records unless given; None without any.

    Raises UserError for a record, hypotheses file or published value that is not as it must be.
    """
    folder = Path(folder)
    records = load_records(folder) if records is None else records
    if not records:
        return None
    return write_public(folder / "report.html", report_html(records, folder))


def report_html(records: Sequence[Record], folder: str | Path) -> str:
    """The page's text: the same for the same records and files, whenever it is made.

    The files of a record are looked up where it was found, else in ``folder``; the paper's values
    are those of ``results/published.csv``.
    """
    values = read_published_values(PUBLISHED_RESULTS / PUBLISHED)
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
        "Gates": _gates(records, folder),
        "Where the numbers are from": _provenance(records, texts),
    }
    kind = "the embedded demo" if records[0]["demo"] else "full runs"
    newest = max(record["provenance"]["created"] for record in records)
    about = f"{kind}: {len(records)} runs, the latest of {newest.partition('T')[0]}"
    if theirs := sum(ORIGIN in record for record in records):
        about += f"; {theirs} of them {CAME_WITH_KIT}"
    return page.whole("Multilingual DistilWhisper: results", f"{about.capitalize()}.", sections)


def _error_rates(records: Sequence[Record]) -> str:
    parts = [page.note(f"Per cent, lower is better. {notes(records)}")]
    parts += _rates(records, "marks", "marks kept")
    whisper = "".join(_rates(records, "whisper", "marks dropped"))
    parts.append(page.folded("The same under Whisper's normaliser", whisper))
    for title, cells in results_table(records).groupby("training", sort=False):
        parts.append(page.figure(title, results_bars, cells))
    return "".join(parts)


def _rates(records: Sequence[Record], normalizer: str, note: str) -> list[str]:
    parts = []
    for metric in shown_metrics(records, normalizer):
        cells = results_table(records, metric, normalizer)
        parts.append(f"<h3>{title_of(cells)}, {note}</h3>{page.table(formatted(cells))}")
    return parts


def _beside(records: Sequence[Record], values: Sequence[Any]) -> str:
    if not values:
        return page.note(
            f"results/{PUBLISHED} holds no value yet: whoever has the paper open can fill it, with "
            "the place each number stands."
        )
    text = compared(records, values)
    sources = ", ".join(dict.fromkeys(value.source for value in values))
    return page.table(text) + page.note(f"WER under the paper's normaliser. Sources: {sources}.")


def _how_sure(resampled: Resampled) -> str:
    intervals, tests = resampled.intervals(), resampled.differences()
    if intervals["error"].isna().all():
        return page.note(
            f"{NO_HYPOTHESES.capitalize()}: nothing to resample. Run the notebooks again."
        )
    blocked = ", ".join(intervals["blocked on"].dropna().unique())
    parts = [
        page.note(
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
        parts.append(page.figure(title, interval_plot, intervals[intervals["training"] == title]))
    tests = tests.dropna(subset=["difference"])
    average = tests[tests["language"] == "average"]
    shown = average if len(average) else tests
    parts.append(f"<h3>Differences, in points</h3>{page.numbers(shown)}")
    parts.append(page.folded("Differences in every language", page.numbers(tests)))
    parts.append(page.folded("Every interval", page.numbers(intervals)))
    return "".join(parts)


def _errors(records: Sequence[Record], texts: Hypotheses) -> str:
    kinds, lengths = error_kinds(records), error_by_length(records, texts)
    parts = []
    for title in blocks(records):
        parts.append(page.figure(title, error_kinds_bars, kinds[kinds["training"] == title]))
        if len(lengths):
            mine = lengths[lengths["training"] == title]
            parts.append(page.figure(f"{title}: error by clip length", length_lines, mine))
    parts.append(page.folded("Substitutions, deletions, insertions", page.numbers(kinds)))
    parts.append("<h3>Loops and hallucinations</h3>")
    parts.append(
        page.note(
            f"Per cent of the clips. Loops: {LOOP_RULE}; where the reference has one too, it does "
            "not count. Too long: more characters per second than the bound, half "
            "as much again as the fastest references of the test set. Cut: ended by the token "
            "limit."
        )
    )
    found = hallucinations(records, texts)
    parts.append(page.numbers(_pooled(found)) + page.folded("By language", page.numbers(found)))
    return "".join(parts)


def _pooled(found: pd.DataFrame) -> pd.DataFrame:
    """Means over languages and seeds of what `hallucinations` found."""
    shown = [name for name in ("loops", "too long", "cut", "empty") if name in found]
    keys = ["training", "system", "domain"]
    return found.groupby(keys, sort=False)[shown].mean().reset_index()


def _worst(records: Sequence[Record], texts: Hypotheses) -> str:
    parts = [page.note("Struck out: not heard. Underlined: not said. Texts as normalised.")]
    for (language, domain), heard in evaluations(records).groupby(["language", "domain"]):
        system = max(heard["system"], key=row_place)  # the last row of the table
        table = worst_utterances(records, texts, language, system, domain)
        title = f"{system}, {language}, {DOMAINS[domain]}"
        parts.append(page.folded(title, Alignment(table)._repr_html_()))
    return "".join(parts)


def _normalizers(records: Sequence[Record]) -> str:
    return page.note(
        "The same hypotheses under each named normaliser. Whisper's rule drops combining marks, "
        "so Thai tones and Tamil vowel signs no longer count, and counts Thai letter by letter: "
        "a difference between the columns is one of spelling, not of hearing."
    ) + page.numbers(normalizers_side_by_side(records))


def _forgotten(records: Sequence[Record], texts: Hypotheses) -> str:
    table = forgetting_table(records, texts)
    if table.empty:
        return page.note("No run listened to languages that it was not trained on.")
    return page.note(
        "The student before and after training on another language, on the same clips. Same "
        "outputs: per cent of the clips where both say the same to the letter. Experts promise "
        "100, because other languages and translation never meet them. Translations are compared "
        "with the untrained student's only: their references are transcripts. A LoRA adapter can "
        "be taken off by hand; here it is left on, as it is when merged."
    ) + page.numbers(table)


def _costs(records: Sequence[Record]) -> str:
    table = formatted_costs(cost_table(records))
    plain = needs_no_title(table.index.unique("training"))
    return page.note("Means over runs; the peak is the largest.") + page.table(
        table.droplevel("training") if plain else table
    )


def _gates(records: Sequence[Record], folder: str | Path) -> str:
    if not files_of("gates", folder, records):
        return page.note("No run with gates yet.")
    title = "Share of expert routing per layer, with 95 % intervals"
    shares = page.figure(title, gate_shares, load_gates(folder, records))
    return shares + _forced(records, folder)


def _forced(records: Sequence[Record], folder: str | Path) -> str:
    files = load_forced(folder, records)
    if not files:
        return page.note("What forced gates change: no run of `distilwhisper_lib gates` yet.")
    about = page.note(
        "The same clips with all gates soft (both branches weighed, as in training), all open, all "
        "closed, and the expert of one layer off at a time, and where that was decoded at random "
        "with the learned shares (the mean of its draws), against the gates as learned: 95 % "
        "intervals, paired, of a bootstrap that draws whole speakers, or utterances where there "
        "are fewer than six speakers. Too narrow where there are fewer than 20 blocks."
    )
    return about + "".join(
        page.figure(f"{forced['run_id']}: gates forced", forced_changes, forced) for forced in files
    )


def _provenance(records: Sequence[Record], texts: Hypotheses) -> str:
    done = rescore(records, texts)
    said = [*done.findings, str(done)]
    if done.unpublished:
        said.append(f"{done.unpublished} evaluations have {NO_HYPOTHESES}.")
    rows = [
        {
            "run": record["run_id"],
            "from": record.get(ORIGIN, "own run"),
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
        "".join(map(page.note, said))
        + page.table(pd.DataFrame(rows))
        + "".join(page.note(model) for model in models)
    )
