"""Whose runs are shown: one's own, of outputs/results, and those that came with the kit.

What is published lies in results/, one's own runs in outputs/results, the demo's in demo/ of each.
A record found here says where it lies, so that its hypotheses and gates are looked up there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distilwhisper_lib.config.settings import (
    CAME_WITH_KIT,
    FOLDER,
    METHODS,
    ORIGIN,
    PUBLISHED_RESULTS,
    Record,
    results_of,
)
from distilwhisper_lib.results.records import load_records


@dataclass(frozen=True)
class Found:
    """Records to show, one's own first, as `located` makes them; ``note`` is a line to print where
    there is something to know of whose they are, else empty."""

    records: list[Record]
    note: str


def find_records(
    own: str | Path,
    published: bool = False,
    preset: str | None = None,
    methods: Sequence[str] = METHODS,
) -> Found:
    """The records of ``own``, a results folder of one's own, of a preset and of methods.

    Those that came with the kit stand beside them where ``published`` asks for it, and in their
    place where there are none. Raises UserError for a record that is not as it must be.
    """

    def wanted(folder: Path) -> list[Record]:
        return [
            located(record, folder)
            for record in load_records(folder)
            if preset in (None, record["preset"]) and record["config"]["method"] in methods
        ]

    mine, kit = wanted(Path(own)), kit_folder(own)
    if mine and not published or kit == Path(own):
        return Found(mine, "")
    theirs = wanted(kit)
    return Found([*mine, *theirs], "" if mine or not theirs else nothing_own(own))


def kit_folder(own: str | Path) -> Path:
    """The folder of what came with the kit that a results folder of one's own stands for."""
    return results_of(PUBLISHED_RESULTS, demo=Path(own).name == "demo")


def nothing_own(own: str | Path) -> str:
    """The line that says so."""
    kit = kit_folder(own)
    return f"No run of your own to show in {own}: shown is what {CAME_WITH_KIT}, in {kit}."


def located(record: Record, folder: str | Path) -> Record:
    """The record with where it lies and, unless it is one's own, where it came from."""
    origin = {ORIGIN: CAME_WITH_KIT} if Path(folder) == kit_folder(folder) else {}
    return record | {FOLDER: str(folder)} | origin


def files_of(
    kind: str, results: str | Path, records: Sequence[Record] | None = None
) -> list[tuple[Path, dict[str, str]]]:
    """The JSON files of a ``kind``, "gates" or "gates/forced", in a results folder, by run id.

    With ``records`` theirs alone, looked up where each was found, and with what tells where.
    """
    if records is None:
        return [(path, {}) for path in sorted((Path(results) / kind).glob("*.json"))]
    found = [(folder_of(r, results) / kind / f"{r['run_id']}.json", r) for r in records]
    return [(p, {k: r[k] for k in (FOLDER, ORIGIN) if k in r}) for p, r in found if p.exists()]


def folder_of(record: Record, otherwise: str | Path) -> Path:
    """Where the files of a record lie: where it was found, or ``otherwise``."""
    return Path(record.get(FOLDER, otherwise))
