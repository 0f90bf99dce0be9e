"""Training clips side by side in Whisper's window, which short ones alone leave mostly silent.

A corpus of five-second clips spends five sixths of its training on silence. Here clips share a
window, each with a pause after it, and the window is trained as one clip: its sound is theirs end
to end, its text theirs in a row or, since the borders are known, with a timestamp before and after
each. Validation and tests stay single clips.

What a table of training clips becomes has a row a window, with two more columns: ``pieces``, the
recordings that it is made of, and ``spans``, what is said when, where it is told with timestamps.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.speech.features import Collator, Room

PAUSE = 0.3  # seconds of silence between two clips
_SEED = 77  # of every run: runs of several seeds then read the same teacher targets


class Piece(NamedTuple):
    """A clip's recording, or its segment from ``start`` to ``end``, and where in the window it
    begins."""

    clip: str  # its id
    audio: str
    start: float
    end: float
    at: float


class Span(NamedTuple):
    """What is said from ``begin`` to ``end``, in seconds of the window."""

    begin: float
    end: float
    text: str


def arranged(config: RunConfig, table: pd.DataFrame, collator: Collator) -> pd.DataFrame:
    """The rows that a run trains on: its clips, or with ``pack`` its windows.

    The same clips give the same windows in the same order. Where ``timestamps`` is above 0, so
    many of the rows, drawn by their ids, have ``spans``. Raises UserError for what the collator
    refuses.
    """
    if not config.pack and not config.timestamps:
        return table
    marks = 3 if config.timestamps else 1  # tokens: a space before the text, and its timestamps
    clips = table.to_dict("records")
    places = [[place] for place in range(len(clips))]
    if config.pack:
        takes = [collator.takes(clip) for clip in clips]
        takes = [take._replace(tokens=take.tokens + marks) for take in takes]
        places = assigned(takes, table["speaker"].tolist(), collator.room(), _SEED)
    return pd.DataFrame([_window([clips[i] for i in window], config) for window in places])


def assigned(
    takes: Sequence[Room], speakers: Sequence[str], window: Room, seed: int
) -> list[list[int]]:
    """Places of clips, window by window: each clip in one, none over its room.

    Longest first, each into the window that it fills best: of one speaker first, where that is
    known, then what is not full yet together with others. Windows and the clips in each come in an
    order of the seed's.
    """
    order = np.random.default_rng(seed).permutation(len(takes))
    clips = [[int(place)] for place in order]
    named: dict[str, list[list[int]]] = {}
    for clip in clips:
        named.setdefault(speakers[clip[0]], []).append(clip)
    alone = named.pop("", [])
    groups = [group for mine in named.values() for group in _best_fit(mine, takes, window)]
    rng = np.random.default_rng([seed, 1])
    packed = _best_fit(groups + alone, takes, window)
    return [rng.permutation(packed[i]).tolist() for i in rng.permutation(len(packed))]


def _best_fit(groups: list[list[int]], takes: Sequence[Room], window: Room) -> list[list[int]]:
    """Groups of clips put together, the longest first, each where the least room is left."""
    sized = [(_taken([takes[i] for i in group]), group) for group in groups]
    sized.sort(key=lambda pair: -pair[0].seconds)  # stable: chance decides between equals
    rooms: list[tuple[float, int]] = []  # seconds left, index of the window; ascending
    windows: list[list[int]] = []
    tokens: list[int] = []
    for took, group in sized:
        needs = took.seconds + PAUSE
        for place in range(bisect_left(rooms, (needs, -1)), len(rooms)):
            left, index = rooms[place]
            if tokens[index] + took.tokens <= window.tokens:
                del rooms[place]
                break
        else:
            left, index = window.seconds + PAUSE, len(windows)
            windows.append([])
            tokens.append(0)
        windows[index] += group
        tokens[index] += took.tokens
        insort(rooms, (left - needs, index))
    return windows


def _taken(clips: Sequence[Room]) -> Room:
    """What clips take together, pauses between them."""
    seconds = sum(clip.seconds for clip in clips) + PAUSE * (len(clips) - 1)
    return Room(seconds, sum(clip.tokens for clip in clips))


def _window(clips: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """The row of a window; of a single clip, its own with the new columns."""
    at, pieces, spans = 0.0, [], []
    for clip in clips:
        pieces.append(Piece(clip["id"], clip["audio"], clip["start"], clip["end"], at))
        spans.append(Span(at, at + clip["seconds"], clip["text"]))
        at += clip["seconds"] + PAUSE
    name = clips[0]["id"] if len(clips) == 1 else f"{clips[0]['id']}+{len(clips) - 1}"
    return clips[0] | {
        "id": name,
        "text": " ".join(clip["text"] for clip in clips),
        "seconds": at - PAUSE,
        "pieces": pieces,
        "spans": spans if _share(name) < config.timestamps else None,
    }


def _share(name: str) -> float:
    """A number from 0 to below 1 that a name gives, whatever rows there are beside it."""
    digest = hashlib.sha256(json.dumps([_SEED, name]).encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


def described(table: pd.DataFrame, collator: Collator) -> dict[str, Any]:
    """What a record says of arranged rows: how many, how full, and which clips stand where."""
    clips = [[piece.clip for piece in pieces] for pieces in table["pieces"]]
    return {
        "windows": len(table),
        "clips": sum(map(len, clips)),
        "fill": round(float(table["seconds"].mean()) / collator.room().seconds, 4),
        "with_timestamps": int(table["spans"].notna().sum()),
        "sha256": hashlib.sha256(json.dumps(clips).encode()).hexdigest(),
    }
