"""What a person's recordings and sheets hold as a page and as CSV, to be sent to whoever made
them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.io.leaks import mask

_BOM = "\ufeff"  # by which spreadsheets know UTF-8
_PAGE = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }}
</style>
<h1>{title}</h1>
<p>{verdict}</p>
{table}
<p>Read on {day}. {legend}</p>
</html>
"""


def write_page(
    path: Path,
    title: str,
    verdict: str,
    table: pd.DataFrame,
    legend: str = "",
    whole: pd.DataFrame | None = None,
) -> list[Path]:
    """Write `table` beside `path` as a page, .html, and as .csv, there `whole` in its place where
    given; returns both paths."""
    page = _PAGE.format(
        title=html.escape(title),
        verdict=html.escape(verdict),
        day=date.today(),
        legend=html.escape(legend),
        table=table.to_html(index=False, border=0, escape=True),
    )
    cells = (table if whole is None else whole).map(_no_formula)
    return [
        write_atomic(path.with_suffix(".csv"), _BOM + cells.to_csv(index=False)),
        write_atomic(path.with_suffix(".html"), page),
    ]


def _no_formula(cell: object) -> object:
    """Text that a spreadsheet would run as a formula, behind the mark that it takes for text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def write_faults(path: Path, found: Sequence[tuple[str, str]]) -> Path:
    """The page of `errors.Faults`: a row for each, its place and what is wrong there."""
    rows = [(mask(place), mask(fault)) for place, fault in found]
    many = f"{len(found)} faults stop" if len(found) > 1 else "One fault stops"
    return write_page(
        path,
        "What must be mended before anything is trained",
        f"{many} the reading; nothing was trained.",
        pd.DataFrame(rows, columns=["place", "fault"]),
    )[1]
