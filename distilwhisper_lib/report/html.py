"""The parts of a page that loads nothing: notes, folded parts, figures as inline SVG, tables.

Each is a string of HTML in which every text that was given is escaped.
"""

from __future__ import annotations

import html
import io
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.config.settings import DOMAINS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.figures import style

_PAGE = PACKAGE / "report" / "page.html"


def whole(title: str, about: str, sections: Mapping[str, str]) -> str:
    """The page: title, a note about it, contents, and the sections' HTML under their titles."""
    template = jinja2.Template(_PAGE.read_text(encoding="utf-8"), autoescape=True)
    return template.render(title=title, about=about, sections=sections)


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


def numbers(frame: pd.DataFrame) -> str:
    """A table of numbers as HTML, without columns that say the same in every row, or nothing."""
    frame = frame.copy()
    for name in ("training", "seed", "note", "blocked on", "clips"):
        if name in frame and len(frame) and frame[name].fillna("").nunique() == 1:
            if name != "note" or not str(frame[name].iloc[0]):
                frame = frame.drop(columns=name)
    words = frame.select_dtypes(exclude="number").columns
    for name in frame.columns:
        frame[name] = [_text(name, value) for value in frame[name]]
    return _html(frame, words)


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
    """A table of text as HTML: numbers beside the rows' names, or words where rows have none."""
    named = text.index.nlevels > 1 or text.index.name is not None
    return _html(text, () if named else text.columns, index=named)


def _html(frame: pd.DataFrame, words: Collection[str], index: bool = False) -> str:
    """Every cell escaped; the columns `words` are set to the left, all others to the right."""
    if frame.empty:
        return note("Nothing to show.")
    left = [f"left-{n}" for n, name in enumerate(frame.columns, 1) if name in words]
    with pd.option_context("display.max_colwidth", None):
        return frame.rename(columns=DOMAINS).to_html(
            index=index, index_names=False, border=0, justify="unset", classes=left, escape=True
        )
