"""Run the races, print their table, and write it with all figures to benchmarks/results.json.

    python -m benchmarks [--device cuda] [--small] [--only RACE ...] [--out FILE] [--threads N]

Lines of races that did not run, on another device or at another size stay in the file. A race that
fails, as one whose sides do not compute the same does, gets a line that says so and costs the
others nothing; the command then ends with status 1. A goal that is missed is no failure.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.races.harness import Row
    from benchmarks.races.races import Race
    from benchmarks.races.setting import Setting

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
SMALL_RESULTS = ROOT / "outputs" / "benchmarks-small.json"
DEVICES = ("cpu", "cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    # Before torch counts devices and threads; the CPU's races must not meet a GPU.
    if given.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    out = (given.out or (SMALL_RESULTS if given.small else RESULTS)).resolve()

    import torch
    from transformers.utils import logging

    from benchmarks.races.races import races
    from benchmarks.races.report import merged, read_rows, table, write_rows
    from benchmarks.races.setting import Setting
    from distilwhisper_lib.errors import UserError

    known = races(given.device)
    unknown = sorted(set(given.only or ()) - set(known))
    if unknown:
        print(f"error: no race {', '.join(unknown)}: they are {', '.join(known)}", file=sys.stderr)
        return 2
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no GPU here: leave --device out", file=sys.stderr)
        return 2
    torch.set_num_threads(given.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # transformers' own, about its next version
    try:
        before, home = read_rows(out), Path.cwd()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # where the library may leave its outputs
        try:
            setting = Setting(given.device, given.small, Path(folder))
            rows = run(setting, {name: known[name] for name in given.only or known})
        finally:
            os.chdir(home)
    write_rows(out, merged(before, rows, setting, whole=not given.only))
    print(f"\n{table(rows)}\n\nWritten to {out.name}")
    return int(any("error" in row for row in rows))


def run(setting: Setting, chosen: dict[str, Race]) -> list[Row]:
    """The rows of every race, each with where and when it was made."""
    from benchmarks.races.harness import failed

    rows = []
    for name, race in chosen.items():
        print(f"{name} ...", flush=True)
        begin = len(rows)
        try:
            for row in race(setting):
                rows.append({**row, **setting.about(), "group": name})
                print(f"  {row['race']}: {row['ratio']:.3f}", flush=True)
        except Exception as error:
            traceback.print_exc()
            print(f"FAILED: {name}: {error}", file=sys.stderr, flush=True)
            rows.append({**failed(name, error), **setting.about(), "group": name})
        print(f"  {len(rows) - begin} lines", flush=True)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--small", action="store_true", help="tiny models: does it run at all?")
    parser.add_argument("--only", nargs="+", metavar="RACE")
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--threads", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
