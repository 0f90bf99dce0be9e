"""What is made from run records, from the command line: tables, the README's blocks, the report.

Records and published hypotheses are all that is read: nothing is decoded or trained.

    python -m distilwhisper_lib.results readme [--check]
    python -m distilwhisper_lib.results show [--demo]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .exports import formatted
from .readme import update_readme
from .records import DOMAINS, Record, load_records
from .tables import HEADLINE, results_tables


def shown_tables(records: Sequence[Record], normalizer: str = "marks") -> str:
    """The headline and CER tables as aligned text for a terminal."""
    if not records:
        return "No run is recorded here yet.\n"
    parts = []
    for metric in (HEADLINE, "cer"):
        for training, table in results_tables(records, metric, normalizer).items():
            body = formatted(table)
            body.columns = [f"{DOMAINS[domain]} {name}" for domain, name in body.columns]
            title = f"{table.attrs['title']} in percent, lower is better"
            text = body.rename_axis(None).to_string()
            parts.append(f"{title} (normaliser: {normalizer}), {training}\n{text}\n")
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
        return given.call(given)
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
