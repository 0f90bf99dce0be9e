"""What is made from run records, from the command line: tables, pages, the report.

Records and published hypotheses are all that is read: nothing is decoded or trained.

    python -m distilwhisper_lib results readme [--check]
    python -m distilwhisper_lib results show [--demo]
    python -m distilwhisper_lib results report [--demo]
    python -m distilwhisper_lib results check [--demo]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from distilwhisper_lib.config.settings import Record
from distilwhisper_lib.errors import command
from distilwhisper_lib.report.pages import PAGE, notes, update_page, update_readme
from distilwhisper_lib.report.published import PUBLISHED
from distilwhisper_lib.report.rescoring import rescore
from distilwhisper_lib.results.exports import filled, formatted, to_text
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.results.tables import own_table, shown_metrics, title_of


def shown_tables(
    records: Sequence[Record], normalizer: str = "marks", width: int | None = None
) -> str:
    """The tables and what to know of them, as aligned text, no wider than the terminal is, or than
    ``width`` characters."""
    width = width or shutil.get_terminal_size().columns
    if not records:
        return "No run is recorded here yet.\n"
    parts = []
    for metric in shown_metrics(records, normalizer):
        cells = own_table(records, metric, normalizer)
        for training, block in cells.groupby("training", sort=False):
            title = f"{title_of(block)} in percent, lower is better (normaliser: {normalizer})"
            title = filled(f"{title}, {training}", width)
            parts.append(f"{title}\n{to_text(formatted(block), width)}\n")
    return "\n".join([*parts, filled(notes(records), width) + "\n"])


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib results", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    readme = commands.add_parser(
        "readme", help="make the tables of both READMEs and results/reproduce.md anew"
    )
    readme.add_argument("--check", action="store_true", help="only look: exit 1 when stale")
    readme.add_argument("--readme", default="README.md", metavar="FILE")
    readme.add_argument("--results", default="results", metavar="FOLDER")
    readme.set_defaults(call=_readme_command)
    show = commands.add_parser("show", help="print the tables and where the figures are")
    show.add_argument("--demo", action="store_true", help="the demo's instead of the full results")
    show.add_argument("--results", default="results", metavar="FOLDER")
    show.set_defaults(call=_show_command)
    report = commands.add_parser("report", help="write report.html beside the records")
    check = commands.add_parser(
        "check", help="score published hypotheses again: exit 1 if not equal"
    )
    for one, call in ((report, _report_command), (check, _check_command)):
        one.add_argument("--demo", action="store_true", help="the demo's records only")
        one.add_argument("--results", default="results", metavar="FOLDER")
        one.set_defaults(call=call)
    given = parser.parse_args(arguments)
    try:
        status = given.call(given)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return 0


def _readme_command(given: argparse.Namespace) -> int:
    current = {
        given.readme: update_readme(given.readme, given.results, given.check),
        Path(given.results) / PAGE: update_page(given.results, given.check),
    }
    reading = Path(given.results) / "README.md"
    if reading.is_file():
        current[reading] = update_readme(reading, given.results, given.check)
    for path, was_so in current.items():
        if was_so:
            print(f"{path}: up to date with the records")
        elif given.check:
            again = "run `python -m distilwhisper_lib results readme`"
            print(f"{path}: stale: {again}", file=sys.stderr)
        else:
            print(f"{path}: made anew from the records")
    return int(given.check and not all(current.values()))


def _show_command(given: argparse.Namespace) -> int:
    folder = Path(given.results) / ("demo" if given.demo else ".")
    records = load_records(folder)
    print(shown_tables(records), end="")
    figures = sorted((folder / "figures").glob("*.png"))
    if figures:
        print(f"\nFigures in {folder / 'figures'}: {', '.join(path.name for path in figures)}")
    return 0


def _folders(given: argparse.Namespace) -> list[Path]:
    """The demo's results folder, and without --demo the full one too."""
    root = Path(given.results)
    return [root / "demo"] if given.demo else [root, root / "demo"]


def _report_command(given: argparse.Namespace) -> int:
    from distilwhisper_lib.report.report import (
        write_report,  # here, because nothing else needs torch
    )

    written = [write_report(folder, Path(given.results) / PUBLISHED) for folder in _folders(given)]
    for path in filter(None, written):
        print(path)
    if not any(written):
        print("No run is recorded here yet.")
    return 0


def _check_command(given: argparse.Namespace) -> int:
    differs = False
    for folder in _folders(given):
        if records := load_records(folder):
            done = rescore(records, folder)
            for finding in done.findings:
                print(finding, file=sys.stderr)
            print(f"{folder}: {done}")
            differs = differs or bool(done.findings)
    return 1 if differs else 0
