"""benchmarks/results.json, and what is shown of it: on the terminal and in benchmarks/README.md.

python -m benchmarks.races.report [--check]    bring that page's table up to date, or only look
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.races.harness import Row
from benchmarks.races.setting import Setting
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.report.pages import replace_between

RESULTS = Path(__file__).resolve().parents[1] / "results.json"
README = Path(__file__).resolve().parents[1] / "README.md"
_KINDS = {"cpu": "CPU", "cuda": "GPU"}


def read_rows(path: Path) -> list[Row]:
    """The lines of an earlier call, if any. UserError when the file holds something else."""
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not all({"race", "ratio", "goal", "holds"} <= set(row) for row in rows):
            raise ValueError("lines of something else")
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: holds no list of races, expected what `make bench` writes: remove it, or "
            "take it from version control"
        ) from None
    return rows


def merged(before: list[Row], rows: list[Row], setting: Setting, whole: bool) -> list[Row]:
    """Earlier lines without those that this call made anew, then its own.

    ``whole``: every race ran, so that all earlier lines of this device and size are superseded.
    """
    ran = {row["group"] for row in rows}
    here = {"device": setting.device, "size": "small" if setting.small else "full"}

    def superseded(row: Row) -> bool:
        same = all(row[name] == value for name, value in here.items())
        return same and (whole or row["group"] in ran)

    return [row for row in before if not superseded(row)] + rows


def write_rows(path: Path, rows: list[Row]) -> None:
    text = json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def table(rows: Sequence[Row]) -> str:
    """The lines as aligned text for a terminal."""
    cells = [("Race", "Ratio", "Goal", "Holds", "Medians"), *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in (1, 2, 3))])
        + f"  {line[4]}"
        for line in cells
    )


def _cells(row: Row) -> tuple[str, ...]:
    if row["ratio"] is None:
        return row["race"], "failed", row["goal"] or "", "no", row["error"].partition("\n")[0]
    verdict = {True: "yes", False: "no", None: ""}[row["holds"]]
    shown = ", ".join(f"{side} {_short(value)}" for side, value in row["medians"].items())
    return row["race"], f"{row['ratio']:.3f}", row["goal"] or "", verdict, f"{shown} {row['unit']}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def readme_section(rows: Sequence[Row]) -> str:
    """The table of each device's full races, with where and when they were made."""
    full = [row for row in rows if row["size"] == "full"]
    parts = []
    for device, name in _KINDS.items():
        mine = [row for row in full if row["device"] == device]
        how = "make bench" if device == "cpu" else f"make bench DEVICE={device}"
        parts.append(_block(mine, name) if mine else f"{name}: not run yet (`{how}`).\n")
    return "\n".join(parts)


def _block(rows: Sequence[Row], name: str) -> str:
    lines = ["| Race | Ratio | Goal | Holds | Medians |", "| :-- | --: | --: | :-- | :-- |"]
    for row in rows:
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |")
    origins = dict.fromkeys(_origin(row) for row in rows)
    return f"{name}. {' '.join(origins)}\n\n" + "\n".join(lines) + "\n"


def _origin(row: Row) -> str:
    machine, versions = row["machine"], row["versions"]
    on = machine["device"] if row["device"] == "cuda" else machine["cpu"]
    changed = " (changed)" if row["dirty"] else ""
    commit = f"commit `{row['commit'][:8]}`{changed}" if row["commit"] else "no commit"
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return (
        f"Made {row['date'].partition('T')[0]}, {commit}, on {on} ({machine['cores']} cores, "
        f"{threads}), torch {versions['torch']}, transformers {versions['transformers']}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.races.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only look: exit 1 when stale")
    parser.add_argument("--readme", type=Path, default=README, metavar="FILE")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    given = parser.parse_args(arguments)
    try:
        old = given.readme.read_text(encoding="utf-8")
        new = replace_between(old, "speed", readme_section(read_rows(given.results)), given.readme)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if new == old:
        print(f"{given.readme.parent.name}/{given.readme.name}: the speed table is up to date")
    elif given.check:
        told = "the speed table is stale: run `python -m benchmarks.races.report`"
        print(f"{given.readme.name}: {told}", file=sys.stderr)
    else:
        write_atomic(given.readme, new)
        print(f"{given.readme.parent.name}/{given.readme.name}: the speed table is rewritten")
    return int(given.check and new != old)


if __name__ == "__main__":
    sys.exit(main())
