"""Own recordings as people bring them: does the data report tell each of them as it is?

    python -m benchmarks.robustness.nuisances [--clips 300] [--seed 3] [--keep FOLDER]

Makes two corpora of the embedded demo's speech with some of every nuisance in them, and first with
the faults that stop a reading: what each sentence names is mended, as its owner would, until all is
read as notebook 01 does it. Prints, for each kind, what is right beside what the report tells, and
exits with 1 where a row, its text, its seconds or a sentence differs.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.robustness.brought import (
    FAULTS,
    KEPT,
    KINDS,
    PAIRS,
    PARTS,
    UNREAD,
    Row,
    corpus_of,
    write_files,
    write_sheets,
)
from distilwhisper_lib import data as kit
from distilwhisper_lib.config import resolve
from distilwhisper_lib.data.subsets import read_subset
from distilwhisper_lib.errors import Faults
from distilwhisper_lib.io.files import parse_json
from distilwhisper_lib.scoring.text import normalize_marks
from distilwhisper_lib.speech import audio

# Seconds that an MP3 without a length header has of its codec's delays, the most of any.
PADDED = 0.15

Told = dict[tuple[str, str], set[str]]  # by part and id of a clip


def read(folder: Path) -> tuple[kit.RunData, dict]:
    """As notebook 01 does; the data and the report that it wrote."""
    given = dict.fromkeys(("train_size", "validation_size", "test_size"))
    given |= {"data_dir": "data"}
    config = resolve("zero_shot", "demo", "ca", 77, given)
    with contextlib.chdir(folder):
        data = kit.load_data(config)
        kit.write_data_report(config, data, kit.preflight(data, kit.label_limit(config)))
        report = parse_json(config.data_report.read_text(encoding="utf-8"))
        report["table"] = pd.read_csv(config.data_report.with_suffix(".csv"), keep_default_na=False)
        lists = config.results_dir / "subsets"
        report["ids"] = {
            part: read_subset(lists / f"{config.data_report.stem}-{part}.txt") for part in PARTS
        }
    return data, report


def mend(rows: list[Row], folder: Path) -> tuple[list[Row], dict[str, str], kit.RunData, dict]:
    """Read, drop the faulty rows that the sentence names, read again: (the rows that stay, sentence
    by kind, data, report). `UserError` as it is where it names no fault, or a row without one."""
    said: dict[str, str] = {}
    while True:
        write_sheets(rows, folder)
        try:
            return rows, said, *read(folder)
        except Faults as error:
            named = [(row, fault) for row in rows for fault in error.found if _is_of(row, fault[0])]
            if not named or any(row.kind not in FAULTS for row, _ in named):
                raise
            said |= {row.kind: fault for row, (_, fault) in named}
            for row, _ in named:
                rows = [other for other in rows if other is not row]
                (folder / "data" / row.corpus / row.file).unlink(missing_ok=True)


def _is_of(row: Row, place: str) -> bool:
    """Whether a fault is that of a row: by its line, or of a recording without one by its name."""
    folder = f"data/{row.corpus}"
    return place in (f"{folder}/metadata.csv, line {row.line}", f"{folder}/{row.file}")


# --- what is right beside what is told ----------------------------------------------------------


def told(rows: Sequence[Row], data: kit.RunData, report: dict) -> Told:
    """What report and tables tell of each clip (part, id): of its use, its text and its sound."""
    found: Told = {}

    def tell(part: str, id_: str, what: str) -> None:
        found.setdefault((part, id_), set()).add(what)

    lines = {(row.part, row.id): f"metadata.csv, line {row.line}" for row in rows}
    for part, ids in report["ids"].items():
        about = report["parts"][part]
        for id_ in ids:
            tell(part, id_, KEPT)
        for clip in about["dropped"]:
            tell(part, clip["id"], f"left out: {clip['reason']}")
        for clip in about["notes"]:
            tell(part, clip["id"], f"noted: {clip['notes']}")
        for clip in about["changed"]:
            for what in clip["what"]:
                tell(part, clip["id"], f"changed: {what}")
        for clip in (*about["dropped"], *about["changed"]):
            where = clip.get("where") or clip["detail"].partition(": ")[0]
            if where != lines.get((part, clip["id"])):
                tell(part, clip["id"], f"its place is {where!r}")
    for rest in report["unread"]:
        unread = [
            row
            for row in rows
            if f"folder/{row.corpus}" == rest["corpus"]
            and (row.sheet["language"], row.sheet["split"]) == (rest["language"], rest["split"])
        ]
        for row in unread if len(unread) == rest["rows"] else ():
            tell(row.part, row.id, UNREAD)
    for group in report["duplicates"]:
        for clip in group:
            tell(clip["part"], clip["id"], PAIRS["one recording, two names"])
    kept = {(part, clip.id): clip for part, t in data.tables().items() for clip in t.itertuples()}
    shared = {leak["value"]: ", ".join(leak["splits"]) for leak in report["leaks"]}
    for row in rows:
        if clip := kept.get((row.part, row.id)):
            if clip.text != row.text:
                tell(row.part, row.id, f"its text is {clip.text!r}")
            if (among := shared.get(normalize_marks(row.text))) is not None:
                tell(row.part, row.id, f"also in {among}")
            heard, exact = audio.read_audio(clip.audio), row.data[:4] in (b"RIFF", b"fLaC")
            for seconds in (clip.seconds, len(heard) / audio.SAMPLE_RATE):
                if abs(seconds - row.seconds) > (0.001 if exact else PADDED):
                    tell(row.part, row.id, f"{seconds:.2f} of {row.seconds:.2f} s")
            copies = row.seconds * audio.SAMPLE_RATE / len(row.samples)
            if not 0.75 < heard @ heard / (copies * row.samples @ row.samples) < 1.3:
                tell(row.part, row.id, "sounds otherwise")
    return found


class Compared(NamedTuple):
    """A line of the table that is printed."""

    nuisance: str
    count: int
    right: str
    told: str
    agrees: bool


def compare(rows: Sequence[Row], found: Told, report: dict) -> Iterator[Compared]:
    """A line for each kind, for each part, and for clips of the report that nobody brought."""
    groups: dict[str, list[tuple[set[str], set[str]]]] = {}
    for row in rows:
        pair = (row.told, found.pop((row.part, row.id), {"nothing"}))
        groups.setdefault(row.kind, []).append(pair)
    for kind in ("as recorded", *KINDS):
        if pairs := groups.get(kind):
            right, said = (_counted(side) for side in zip(*pairs, strict=True))
            yield Compared(kind, len(pairs), right, said, all(r == t for r, t in pairs))
    if found:
        said = _counted(found.values())
        yield Compared("brought by nobody", len(found), "nothing", said, False)
    for part in PARTS:
        about = report["parts"][part]
        label = f"{about['corpus']}, {about['split']}"
        table = report["table"][report["table"]["part"] == label]
        ours = [row for row in rows if row.part == part and row.told != {UNREAD}]
        left = sum(KEPT not in row.told for row in ours)
        said = [table[table["what"] == what]["count"].sum() for what in (KEPT, "left out")]
        seconds = sum(row.seconds for row in ours if KEPT in row.told)
        hours = about["hours"]
        yield Compared(
            part, len(ours), f"{len(ours) - left} kept, {left} left out, {seconds:.0f} s",
            f"{said[0]} kept, {said[1]} left out, {3600 * hours:.0f} s",
            said == [len(ours) - left, left] and abs(3600 * hours - seconds) < PADDED * len(ours),
        )  # fmt: skip


def _counted(sets: Iterable[set[str]]) -> str:
    counts = Counter(
        "; ".join(sorted(told, key=lambda what: (what != KEPT, what))) for told in sets
    )
    return " / ".join(f"{n} {what}" if len(counts) > 1 else what for what, n in counts.items())


def check(rows: list[Row], folder: Path) -> list[Compared]:
    """Bring `rows` to `folder`, mend, read and compare."""
    write_files(rows, folder)
    with contextlib.chdir(folder):
        rows, said, data, report = mend(rows, folder)
        lines = [
            Compared(kind, 1, "stops, and is named", said.get(kind, "nothing"), kind in said)
            for kind in FAULTS
        ]
        return lines + list(compare(rows, told(rows, data, report), report))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=300, help="at least 60 (%(default)s)")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="an empty folder for the corpora")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lines = check(corpus_of(given.clips, given.seed), folder.resolve())
    print("| nuisance | clips | right | told | agrees |\n| :-- | --: | :-- | :-- | :-- |")
    for line in lines:
        fields = (*line[:-1], "yes" if line.agrees else "NO")
        print(f"| {' | '.join(repr(str(f))[1:-1].replace('|', '/') for f in fields)} |")
    wrong = sum(not line.agrees for line in lines)
    print(f"\n{given.clips} clips, {wrong} disagreements, {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
