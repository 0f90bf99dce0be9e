"""What people want transcribed: recordings found, read, and cut where they are quiet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from distilwhisper_lib.config.settings import locate
from distilwhisper_lib.data.own_folder import RECORDINGS
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech.arrays import samples_of
from distilwhisper_lib.speech.audio import SAMPLE_RATE
from distilwhisper_lib.speech.guarded import read_audio

# Where to cut: the quietest tenth of a second in the last half of what may be decoded at once.
_HOP, _QUIET_HOPS = SAMPLE_RATE // 50, 5


def cut_at_silence(samples: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Cut (samples,) into stretches of at most ``limit`` samples: (first, last) of each.

    Each cut falls on the quietest tenth of a second in the last half of what is allowed.
    """
    pieces, first = [], 0
    while len(samples) - first > limit:
        search = first + limit // 2
        stretch = samples[search : first + limit]
        hops = stretch[: len(stretch) // _HOP * _HOP].reshape(-1, _HOP)
        energy = np.convolve((hops.astype(np.float64) ** 2).sum(1), np.ones(_QUIET_HOPS), "valid")
        quietest = len(energy) - 1 - int(np.argmin(energy[::-1]))  # of equals the last
        cut = search + quietest * _HOP + _QUIET_HOPS * _HOP // 2
        pieces.append((first, cut))
        first = cut
    return [*pieces, (first, len(samples))]


def read_recording(given: Any, rate: int) -> np.ndarray:
    """A path, the bytes of a file, or an array at ``rate`` -> (samples,) float32 at 16 kHz."""
    if isinstance(given, (str, Path)):
        return read_audio(locate(str(given)))
    return read_audio(given) if isinstance(given, bytes) else samples_of(given, rate)


def is_many(source: Any) -> bool:
    """Whether a source is a folder or a list rather than one recording."""
    if isinstance(source, (list, tuple)):
        # A list of numbers is one recording, which samples_of() judges.
        return not source or not isinstance(source[0], (int, float))
    # Path.is_dir raises at a name of 300 characters.
    return isinstance(source, (str, Path)) and os.path.isdir(locate(str(source)))


def find_recordings(source: Any) -> list[tuple[str, Any]]:
    """(name, what to read) of each recording; UserError when there is none."""
    if not is_many(source):
        return [(_name(source), source)]
    if isinstance(source, (list, tuple)):
        if not source:
            raise UserError("the list of recordings is empty: give paths or arrays")
        return [
            (_name(one) if isinstance(one, (str, Path)) else f"{_name(one)} {number}", one)
            for number, one in enumerate(source, start=1)
        ]
    found = sorted(
        path
        for path in Path(locate(str(source))).rglob("*")
        if path.suffix.lower() in RECORDINGS and path.is_file() and not path.name.startswith(".")
    )
    if not found:
        raise UserError(
            f"folder {source} holds no recording: expected files such as .wav, .flac, .mp3, .ogg"
        )
    return [(str(path), path) for path in found]


def _name(source: Any) -> str:
    if isinstance(source, (str, Path)):
        return str(source)
    return "upload" if isinstance(source, bytes) else "array"
