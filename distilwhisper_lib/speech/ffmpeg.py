"""What phones and browsers record and libsndfile cannot read, decoded by FFmpeg through PyAV.

PyAV is the extra ``recordings``. A file is known by its content; each container is opened by its
one demuxer and never by FFmpeg's guess, and is handed over as a stream of bytes: play lists, which
name other files and addresses, are never followed. Only the first audio stream is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from distilwhisper_lib.errors import UserError

# Where a container's mark stands, the mark, FFmpeg's demuxer, and what people call it.
_MARKS = (
    (4, b"ftyp", "mov", "MPEG-4 (m4a, mp4, 3gp)"),
    (4, b"moov", "mov", "QuickTime"),
    (4, b"mdat", "mov", "QuickTime"),
    (0, b"\x1a\x45\xdf\xa3", "matroska", "WebM or Matroska"),
    (0, b"#!AMR", "amr", "AMR"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "Windows Media"),
    (0, b"\xff\xf1", "aac", "AAC"),
    (0, b"\xff\xf9", "aac", "AAC"),
    (0, b"ADIF", "aac", "AAC"),
    (0, b"caff", "caf", "Core Audio"),
)
_HEAD = 16  # bytes that marks stand in


class Sound(NamedTuple):
    """What a container says of its first audio stream."""

    rate: int
    channels: int
    seconds: float | None  # None where it does not say


def kind_of(source: str | bytes) -> tuple[str, str] | None:
    """(demuxer, what people call it) of a file or its bytes, by content; None if none of these."""
    with _stream(source) as file:
        head = file.read(_HEAD)
    for place, mark, demuxer, called in _MARKS:
        if head[place : place + len(mark)] == mark:
            return demuxer, called
    return None


def has_decoder() -> bool:
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def sound_of(source: str | bytes, demuxer: str) -> Sound:
    """The first audio stream by its container; `UserError` without one, av's errors as they are."""
    with _opened(source, demuxer) as (container, stream):
        seconds = stream.duration and float(stream.duration * stream.time_base)
        seconds = seconds or (container.duration and container.duration / 1e6)
        return Sound(stream.codec_context.sample_rate, stream.codec_context.channels, seconds)


def blocks(source: str | bytes, demuxer: str) -> Iterator[np.ndarray]:
    """Its sound from beginning to end: float32 (frames, channels), as many as the packets hold."""
    import av

    with _opened(source, demuxer) as (container, stream):
        context = stream.codec_context
        layout, rate = context.layout, context.sample_rate
        planar = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        for frame in container.decode(stream):
            for part in planar.resample(frame):
                yield part.to_ndarray().T  # (channels, frames) -> (frames, channels)
        for part in planar.resample(None):
            yield part.to_ndarray().T


def errors() -> tuple[type[Exception], ...]:
    """What PyAV raises at a file that is broken."""
    import av

    return (av.error.FFmpegError, ValueError, OSError)


def is_damage(error: Exception) -> bool:
    """Whether one of `errors` speaks of the file, not of what this FFmpeg cannot decode."""
    if not has_decoder():
        return False
    import av

    return isinstance(error, av.error.InvalidDataError | av.error.EOFError)


@contextmanager
def _opened(source: str | bytes, demuxer: str) -> Iterator[tuple[Any, Any]]:
    import av

    with _stream(source) as file, av.open(file, format=demuxer) as container:
        if not container.streams.audio:
            raise UserError("it holds no sound")
        yield container, container.streams.audio[0]


def _stream(source: str | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
