"""The parts of a page that loads nothing: notes, folded parts, figures as inline SVG, tables.

Each is a string of HTML in which every text that was given is escaped.
"""

from __future__ import annotations

import html
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import style

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


def whole(title: str, about: str, sections: Mapping[str, str]) -> str:
    """The page: title, a note about it, contents, and the sections' HTML under their titles."""
    contents = " · ".join(
        f'<a href="#s{n}">{html.escape(name)}</a>' for n, name in enumerate(sections)
    )
    body = "".join(
        f'<h2 id="s{n}">{html.escape(name)}</h2>{content}'
        for n, (name, content) in enumerate(sections.items())
    )
    title = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_CSS}</style></head><body>"
        f"<h1>{title}</h1>{note(about)}"
        f"<p>{contents}</p>{body}</body></html>\n"
    )


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def figure(title: str, draw: Callable[[Any], Figure], data: Any) -> str:
    """The figure as inline SVG, or the sentence that says why there is none."""
    try:
        figure = draw(data)
    except UserError as error:
        return note(f"{title}: {error}")
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


_WORDS = ("system", "against", "domain", "language", "training", "note", "blocked on", "task",
          "trained on", "heard", "metric", "run", "made", "commit", "changed", "device",
          "conventions", "versions", "command")  # fmt: skip


def numbers(frame: pd.DataFrame) -> str:
    """A table of numbers as HTML, without columns that say the same in every row, or nothing."""
    frame = frame.copy()
    for name in ("training", "seed", "note", "blocked on", "clips"):
        if name in frame and len(frame) and frame[name].fillna("").nunique() == 1:
            if name != "note" or not str(frame[name].iloc[0]):
                frame = frame.drop(columns=name)
    for name in frame.columns:
        frame[name] = [_text(name, value) for value in frame[name]]
    return table(frame)


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


def table(text: pd.DataFrame) -> str:
    """A table of text as HTML, every cell escaped. An outer row level becomes lines of its own."""
    if text.empty:
        return note("Nothing to show.")
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
