"""Opening recordings before a run does, so that a broken one costs a line and not the run."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from distilwhisper_lib.data.clips import (
    EMPTY,
    MISSING,
    REASONS,
    SILENT,
    UNREADABLE,
    UNSAFE,
    WHERE,
    Inspection,
)
from distilwhisper_lib.errors import Faults, UserError
from distilwhisper_lib.io.files import parse_json, write_atomic
from distilwhisper_lib.speech.audio import LENGTH_SLACK
from distilwhisper_lib.speech.guarded import header_seconds, listen

# Each thread has a process that decodes; more than the cores do not help.
_THREADS = min(8, os.cpu_count() or 1)
FAR_SECONDS = 60.0  # twice Whisper's window
_CHECKS = 2  # one more whenever decoding sees more, so that it looks again
MEMORY = ".clip_checks.json"  # in a corpus: what decoding said of each clip
_MANY = 500  # clips from which on one would like to see progress


def require_readable(clips: Sequence[Path]) -> list[Inspection]:
    """The length of each file from its header; `UserError` for the first that cannot be read."""
    seconds = {clip: header_seconds(clip) for clip in dict.fromkeys(clips)}
    return [Inspection(seconds[clip]) for clip in clips]


def inspect_clip(clip: Path, root: Path, far: float = FAR_SECONDS) -> Inspection:
    """Decode one file of a folder that holds nothing else; says what is wrong and raises nothing.

    Decoding, because the header of a file that was cut short promises the whole. Of a clip of more
    than `far` seconds the header is believed: it is left out as too long, whatever it holds.
    """
    # Not Path.resolve, which raises at a link to itself.
    if not Path(os.path.realpath(clip)).is_relative_to(root):
        return Inspection(math.nan, UNSAFE, f"{clip.name} leads out of its folder")
    # Not Path.is_file, which raises at a name of 300 characters.
    if not os.path.isfile(clip):
        return Inspection(math.nan, MISSING, clip.name)
    if clip.stat().st_size == 0:
        return Inspection(math.nan, EMPTY, clip.name)
    try:
        heard = listen(clip, far)
        reason = SILENT if heard.silent else None
        return Inspection(heard.seconds, reason, notes=heard.notes, silences=heard.silences)
    except UserError as error:
        return Inspection(math.nan, UNREADABLE, str(error).replace(str(clip), clip.name))


class ClipChecks:
    """`inspect_clip` over many files of one folder, remembered in `memory` from run to run.

    Decoding 10,000 clips takes a minute; a file of the same size and date that could be read is not
    decoded again. A memory that cannot be written (a read-only corpus) costs that minute and
    nothing else; one that cannot be read is made anew. `far` as in `inspect_clip`.
    """

    def __init__(self, root: Path, memory: Path, far: float = FAR_SECONDS) -> None:
        self.folder, self.root, self.memory, self.far = root, root.resolve(), memory, far

    def __call__(self, clips: Sequence[Path]) -> list[Inspection]:
        known = self._recall()
        keys = {clip: _key(clip, self.folder) for clip in dict.fromkeys(clips)}
        # A file that is missing has no key: it may come back.
        new = [clip for clip, key in keys.items() if key is None or key not in known]
        with ThreadPoolExecutor(_THREADS) as pool:
            results = pool.map(self._inspect, new)
            bar = tqdm(results, "decode once", len(new), unit="clip", disable=len(new) < _MANY)
            found = dict(zip(new, bar, strict=True))
        learnt = {keys[clip]: result for clip, result in found.items() if keys[clip] is not None}
        if learnt:
            self._remember(known | learnt)
        return [found[clip] if clip in found else known[keys[clip]] for clip in clips]

    def _inspect(self, clip: Path) -> Inspection:
        return inspect_clip(clip, self.root, self.far)

    def _recall(self) -> dict[str, Inspection]:
        try:
            stored = parse_json(self.memory.read_text(encoding="utf-8"))
            known = {
                key: Inspection(
                    math.nan if seconds is None else float(seconds),
                    reason,
                    detail,
                    tuple(notes),
                    tuple((float(start), float(end)) for start, end in silences),
                )
                for key, (seconds, reason, detail, notes, silences) in stored.items()
            }
            for result in known.values():
                texts = (result.detail, *result.notes)
                if result.reason not in (None, *REASONS) or not all(
                    isinstance(text, str) for text in texts
                ):
                    return {}
            # A decoder that was short of memory, or not there, may read another time what it
            # could not.
            return {key: found for key, found in known.items() if found.reason != UNREADABLE}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):
            return {}

    def _remember(self, known: dict[str, Inspection]) -> None:
        stored = {
            key: [None if math.isnan(result.seconds) else result.seconds, *result[1:]]
            for key, result in known.items()
        }
        try:
            write_atomic(self.memory, json.dumps(stored, ensure_ascii=False))
        except OSError:
            return


class RequireWhole:
    """`ClipChecks` where nothing may be broken: whoever recorded `table` can mend it.

    Raises `Faults` of the recordings which cannot be decoded, or whose decoded length is not that
    of their row in `table` (columns of `clips.COLUMNS`). Silence is no fault of a copy: it is
    found, and left out.
    """

    def __init__(self, table: pd.DataFrame, root: Path, memory: Path) -> None:
        # A file may hold many utterances, so however long it is, all of it is decoded.
        self._checks = ClipChecks(root, memory, far=math.inf)
        self._root = root
        rows = zip(table["audio"], table["start"], table["end"], table["seconds"], strict=True)
        self._where = dict(zip(table["audio"].map(Path), table[WHERE], strict=True))
        self._promised = defaultdict(list)
        for audio, *promised in rows:
            self._promised[Path(audio)].append(promised)

    def __call__(self, clips: Sequence[Path]) -> list[Inspection]:
        found = self._checks(clips)
        if faults := self._faults(clips, found):
            raise Faults(faults)
        return found

    def faults(self) -> list[tuple[str, str]]:
        """What is wrong with any recording of the table, each after its place."""
        clips = list(self._where)
        return self._faults(clips, self._checks(clips))

    def _faults(self, clips: Sequence[Path], found: Sequence[Inspection]) -> list[tuple[str, str]]:
        told = {
            f"{self._root}/{self._where[clip]}": fault
            for clip, result in zip(clips, found, strict=True)
            if (fault := _broken(result) or self._wrong_length(clip, result.seconds))
        }
        return list(told.items())

    def _wrong_length(self, clip: Path, decoded: float) -> str | None:
        for start, end, seconds in self._promised[clip]:
            first = 0.0 if math.isnan(start) else start
            last = decoded if math.isnan(end) else end
            if last > decoded + LENGTH_SLACK or abs(last - first - seconds) > LENGTH_SLACK:
                return (
                    f"{clip.name} decodes to {decoded:.2f} s, and a row says that {first:g} to "
                    f"{last:.2f} s of it are {seconds:.2f} s; correct or drop the row"
                )
        return None


def _broken(result: Inspection) -> str | None:
    if result.reason in (None, SILENT):
        return None
    return f"{(result.detail or result.reason).rstrip('.')}, or drop its row"


def _key(clip: Path, folder: Path) -> str | None:
    """Name, size and date of a file, or None where there is none."""
    try:
        status = clip.stat()
    except OSError:
        return None
    return f"{os.path.relpath(clip, folder)}/{status.st_size}/{status.st_mtime_ns}/{_CHECKS}"
