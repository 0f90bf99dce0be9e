"""Opening recordings before a run does, so that a broken one costs a line and not the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from .audio import audio_seconds, decoded_seconds
from .clips import EMPTY, MISSING, UNREADABLE, UNSAFE, Inspection
from .errors import UserError
from .files import write_atomic

# libsndfile decodes outside Python's lock, so threads help; more than the cores do not.
_THREADS = min(8, os.cpu_count() or 1)
FAR_SECONDS = 60.0  # twice Whisper's window
_MANY = 500  # clips from which on one would like to see progress


def require_readable(clips: Sequence[Path]) -> list[Inspection]:
    """The length of each file from its header; `UserError` for the first that cannot be read."""
    seconds = {clip: audio_seconds(clip) for clip in dict.fromkeys(clips)}
    return [Inspection(seconds[clip]) for clip in clips]


def inspect_clip(clip: Path, root: Path) -> Inspection:
    """Decode one file of a folder that holds nothing else; says what is wrong and raises nothing.

    Decoding, because the header of a file that was cut short promises the whole. Of a clip far
    beyond the window the header is believed: it is left out as too long, whatever it holds.
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
        return Inspection(decoded_seconds(clip, FAR_SECONDS))
    except UserError as error:
        return Inspection(math.nan, UNREADABLE, str(error).replace(str(clip), clip.name))


class ClipChecks:
    """`inspect_clip` over many files of one folder, remembered in `memory` from run to run.

    Decoding 10,000 clips takes a minute; a file of the same size and date is not decoded again. A
    memory that cannot be written (a read-only corpus) costs that minute and nothing else; one that
    cannot be read is made anew.
    """

    def __init__(self, root: Path, memory: Path) -> None:
        self.root, self.memory = root.resolve(), memory

    def __call__(self, clips: Sequence[Path]) -> list[Inspection]:
        known = self._recall()
        keys = {clip: _key(clip) for clip in dict.fromkeys(clips)}
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
        return inspect_clip(clip, self.root)

    def _recall(self) -> dict[str, Inspection]:
        try:
            stored = json.loads(self.memory.read_text(encoding="utf-8"))
            return {
                key: Inspection(math.nan if seconds is None else float(seconds), reason, detail)
                for key, (seconds, reason, detail) in stored.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
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


def _key(clip: Path) -> str | None:
    """Name, size and date of a file, or None where there is none."""
    try:
        status = clip.stat()
    except OSError:
        return None
    return f"{clip.name}/{status.st_size}/{status.st_mtime_ns}"
