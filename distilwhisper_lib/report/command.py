"""What is made from run records, from the command line: tables, pages, the report.

Records and hypotheses are all that is read: nothing is decoded or trained. Shown are the runs of
one's own, in outputs/results; those that came with the kit, in results/, beside them on request,
and in their place where there are none.

    python -m distilwhisper_lib results show [--demo] [--compare] [--published]
    python -m distilwhisper_lib results report [--demo] [--published]
    python -m distilwhisper_lib results check [--demo] [--published]
    python -m distilwhisper_lib results publish RUN...
    python -m distilwhisper_lib results readme [--check]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from distilwhisper_lib.config.settings import (
    OWN_RESULTS,
    PUBLISHED_RESULTS,
    Record,
    results_of,
)
from distilwhisper_lib.errors import command
from distilwhisper_lib.report.pages import PAGE, notes, update_page, update_readme
from distilwhisper_lib.report.publishing import publish_run
from distilwhisper_lib.report.rescoring import rescore
from distilwhisper_lib.results.exports import filled, formatted, to_text
from distilwhisper_lib.results.places import Found, find_records, folder_of, kit_folder
from distilwhisper_lib.results.records import load_records
from distilwhisper_lib.results.repeats import compare_repeats
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
            rows = formatted(block.assign(training=""))  # its title stands above
            parts.append(f"{title}\n{to_text(rows, width)}\n")
    return "\n".join([*parts, filled(notes(records), width) + "\n"])


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    readme = commands.add_parser(
        "readme", help="make the tables of both READMEs and results/reproduce.md anew"
    )
    readme.add_argument("--check", action="store_true", help="only look: exit 1 when stale")
    readme.add_argument("--readme", default="README.md", metavar="FILE")
    readme.add_argument("--results", default=str(PUBLISHED_RESULTS), metavar="FOLDER")
    readme.set_defaults(call=_readme_command)
    publish = commands.add_parser(
        "publish", help="copy runs of one's own into results/, with hypotheses and gate files"
    )
    publish.add_argument("runs", nargs="+", metavar="RUN", help="a run id, its folder or record")
    publish.set_defaults(call=_publish_command)
    show = commands.add_parser("show", help="print the tables and where the figures are")
    show.add_argument(
        "--compare", action="store_true", help="say how far they are from the published runs"
    )
    report = commands.add_parser("report", help="write report.html beside one's own records")
    check = commands.add_parser("check", help="score hypotheses again: exit 1 if not equal")
    for one, call in ((show, _show_command), (report, _report_command), (check, _check_command)):
        one.add_argument("--demo", action="store_true", help="the demo's records only")
        one.add_argument("--results", default=str(OWN_RESULTS), metavar="FOLDER")
        one.add_argument(
            "--published", action="store_true", help="also those that came with the kit"
        )
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


def _publish_command(given: argparse.Namespace) -> int:
    for run in given.runs:
        print(*publish_run(run), sep="\n")
    print("now the pages: python -m distilwhisper_lib results readme")
    return 0


def _show_command(given: argparse.Namespace) -> int:
    shown = [_show(given, folder) for folder in _folders(given)]
    print("\n".join(filter(None, shown)) or "No run is recorded here yet.\n", end="")
    return 0


def _show(given: argparse.Namespace, folder: Path) -> str:
    if not (records := _found(given, folder).records):
        return ""
    parts = [shown_tables(records)]
    figures = sorted((folder / "figures").glob("*.png"))
    if figures:
        parts.append(f"{len(figures)} figures in {folder / 'figures'}.\n")
    if given.compare:
        repeats = compare_repeats(load_records(folder), load_records(kit_folder(folder)))
        parts.append(f"{repeats}\n")
    return "\n".join(parts)


def _found(given: argparse.Namespace, folder: Path) -> Found:
    """The records to show, after a line that says whose they are where this has to be said."""
    found = find_records(folder, given.published)
    if found.note:
        print(found.note)
    return found


def _folders(given: argparse.Namespace) -> list[Path]:
    """The demo's results folder, and without --demo the full one too; of the two, those that hold
    runs of one's own, where one does."""
    both = [results_of(given.results, demo) for demo in (False, True) if demo or not given.demo]
    return [folder for folder in both if any((folder / "runs").glob("*.json"))] or both


def _report_command(given: argparse.Namespace) -> int:
    from distilwhisper_lib.report.report import (
        write_report,  # here, because nothing else needs torch
    )

    written = [write_report(folder, _found(given, folder).records) for folder in _folders(given)]
    for path in filter(None, written):
        print(path)
    if not any(written):
        print("No run is recorded here yet.")
    return 0


def _check_command(given: argparse.Namespace) -> int:
    differs = False
    for folder in _folders(given):
        groups: dict[Path, list[Record]] = {}
        for record in _found(given, folder).records:
            groups.setdefault(folder_of(record, folder), []).append(record)
        for place, records in groups.items():
            done = rescore(records, place)
            for finding in done.findings:
                print(finding, file=sys.stderr)
            print(f"{place}: {done}")
            differs = differs or bool(done.findings)
    return 1 if differs else 0
