"""Tables as text: for a notebook, a terminal, GitHub (Markdown), a paper (LaTeX), a spreadsheet.

`formatted` turns numbers into text; everything else takes a table of text, rows systems (under
their training size where there are several), columns (domain, language) or finer.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from distilwhisper_lib.config.settings import DOMAINS, NORMALIZERS, Record
from distilwhisper_lib.io.leaks import write_public
from distilwhisper_lib.results.frame import AVERAGE, METRICS, needs_no_title
from distilwhisper_lib.results.tables import NOT_RUN, column_place, results_table, wide


def formatted(cells: pd.DataFrame) -> pd.DataFrame:
    """`results_table` as text: one decimal, mean ± standard deviation, "not run" where empty.

    A row a system that was run; several training sizes stand one below the other, under an outer
    row level.
    """
    text = [cell(mean, sd) for mean, sd in zip(cells["error"], cells["sd"], strict=True)]
    return _laid_out(cells.assign(text=text), "system")


def _laid_out(cells: pd.DataFrame, row: str) -> pd.DataFrame:
    parts = cells.groupby("training", sort=False)
    return stacked({title: wide(part, "text", row).fillna(NOT_RUN) for title, part in parts})


def cell(mean: float, sd: float = math.nan) -> str:
    """One cell: per cent to one decimal, or "not run"."""
    if math.isnan(mean):
        return NOT_RUN
    return f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def with_intervals(found: pd.DataFrame) -> pd.DataFrame:
    """Rows of `significance.Resampled` as a table of text: an error, or a difference in points with
    its adjusted p-value, "-5.5 [-8.9, -2.3] p 0.007"; a note where there is neither. Rows stand
    in the order in which they come first."""
    paired = "against" in found
    rows = found.assign(
        row=found["system"] + (" against " + found["against"] if paired else ""),
        text=[_with_interval(row, paired) for row in found.to_dict("records")],
    )
    return _laid_out(rows, "row")


def _with_interval(row: Mapping[str, Any], paired: bool) -> str:
    value = row["difference" if paired else "error"]
    if math.isnan(value):
        return row["note"]
    text = f"{value:.1f} [{row['low']:.1f}, {row['high']:.1f}]"
    return f"{text} p {row['p (Holm)']:.2g}" if paired else text


def stacked(texts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of text one below the other; languages that a training size lacks were not run."""
    if not texts:
        return pd.DataFrame(index=pd.Index([], name="system"))
    if needs_no_title(texts):
        return next(iter(texts.values()))
    order = pd.concat(texts, names=["training"])
    return order[sorted(order.columns, key=column_place)].fillna(NOT_RUN)


def _sections(text: pd.DataFrame) -> Iterator[tuple[str | None, pd.DataFrame]]:
    """(title or None, rows) of each training size."""
    if text.index.nlevels == 1:
        yield None, text
        return
    for title in text.index.unique(level=0):
        yield title, text.loc[title]


_SHORT = {"in_domain": "in", "out_of_domain": "out"}


def to_text(table: pd.DataFrame, width: int) -> str:
    """The table for a terminal of ``width`` characters.

    An average of one language is left out. Where the table is too wide, with short names, and
    settings told below; where it still is, a table for each domain; and where that is, the columns
    too many in one more.
    """
    counts = Counter(domain for domain, *_ in table.columns)
    alone = [c for c in table.columns if counts[c[0]] == 2 and c[1].startswith(AVERAGE)]
    table = table.drop(columns=alone)
    text = _aligned(table, DOMAINS)
    if _widest(text) <= width:
        return text
    rows = [row.partition(" (") for row in table.index]
    settings = list(dict.fromkeys(changed[:-1] for _, _, changed in rows if changed))
    names = [f"{name} [{settings.index(c[:-1]) + 1}]" if c else name for name, _, c in rows]
    short = table.set_axis(names).rename(columns={n: n.replace(AVERAGE, "avg") for _, n in table})
    text = _aligned(short, _SHORT)
    if _widest(text) > width:
        domains = [short[[domain]] for domain in DOMAINS if domain in short]
        text = "\n\n".join(_aligned(part, _SHORT, width) for part in domains)
    told = [filled(f"[{number}] {changed}", width) for number, changed in enumerate(settings, 1)]
    return "\n".join([text, *told])


def _aligned(table: pd.DataFrame, domains: Mapping[str, str], width: int | None = None) -> str:
    heads = [f"{domains[domain]} {name}" for domain, name in table.columns]
    text = table.set_axis(heads, axis=1).rename_axis(None).to_string(line_width=width)
    # pandas ends a heading that goes on below with a backslash
    return "\n".join(line.rstrip(" \\") for line in text.splitlines())


def _widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def filled(text: str, width: int) -> str:
    """Prose in lines of so many characters; a run's name is not broken at its hyphens."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def to_markdown(text: pd.DataFrame, head: str = "System") -> str:
    """The table as a GitHub Markdown table, numbers to the right; ``head`` names the rows."""
    heads = [
        "<br>".join(_markdown(part) for part in (DOMAINS.get(domain, domain), *rest) if part)
        for domain, *rest in text.columns
    ]
    lines = [[head, *heads], [":--", *["--:"] * len(heads)]]
    for title, rows in _sections(text):
        lines += [[f"**{_markdown(title)}**", *[""] * len(heads)]] if title else []
        lines += [[_markdown(row), *map(_markdown, rows.loc[row])] for row in rows.index]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"^-(?=\d)", "$-$", escaped)  # a minus, not a hyphen


def to_latex(text: pd.DataFrame) -> str:
    r"""The table as a ``tabular`` for the booktabs package: ``\input`` it inside a table."""
    columns = [tuple(column) for column in text.columns]
    levels = len(columns[0]) if columns else 1
    lines = [r"% needs \usepackage{booktabs}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    for level in range(levels - 1):
        lines += _latex_spans([column[: level + 1] for column in columns])
    lines += [_latex_row(["System", *(_latex(column[-1]) for column in columns)])]
    for title, rows in _sections(text):
        lines.append(r"\midrule")
        if title:
            span = rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{{_latex(title)}}}}}"
            lines.append(_latex_row([span]))
        lines += [_latex_row([_latex(row), *map(_latex, rows.loc[row])]) for row in rows.index]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _latex_spans(heads: Sequence[tuple[str, ...]]) -> list[str]:
    """A heading line over equal neighbours, and the rules below it."""
    cells, rules, start = [""], [], 0
    while start < len(heads):
        end = start
        while end < len(heads) and heads[end] == heads[start]:
            end += 1
        name = _latex(DOMAINS.get(heads[start][-1], heads[start][-1]))
        cells.append(rf"\multicolumn{{{end - start}}}{{c}}{{{name}}}")
        rules.append(rf"\cmidrule(lr){{{start + 2}-{end + 1}}}")
        start = end
    return [_latex_row(cells), "".join(rules)]


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def to_csv(text: pd.DataFrame, path: str | Path) -> Path:
    """The same cells as CSV with one heading line, "in_domain ca" and so on; returns the path."""
    body = text.copy()
    body.columns = [" ".join(part for part in column if part) for column in body.columns]
    body.index.names = ["training", "system"][-body.index.nlevels :]
    buffer = io.StringIO()
    body.to_csv(buffer, lineterminator="\n")
    return write_public(path, buffer.getvalue())


def write_table(text: pd.DataFrame, path: str | Path) -> list[Path]:
    """``path``.csv, .md and .tex; returns what was written."""
    path = Path(path)
    return [
        to_csv(text, path.with_name(f"{path.name}.csv")),
        write_public(path.with_name(f"{path.name}.md"), to_markdown(text)),
        write_public(path.with_name(f"{path.name}.tex"), to_latex(text)),
    ]


def write_tables(records: Sequence[Record], folder: str | Path) -> list[str]:
    """Every table (metric x normaliser) as CSV, Markdown and LaTeX; returns the files written."""
    written = []
    for metric in METRICS:
        for normalizer in NORMALIZERS:
            text = formatted(results_table(records, metric, normalizer))
            written += write_table(text, Path(folder) / f"{metric}-{normalizer}")
    return [str(path) for path in written]
