"""Audio files in, 16 kHz mono float32 out: the one place where a recording is decoded.

Whatever libsndfile reads is accepted (WAV, FLAC, MP3, Ogg Vorbis, Ogg Opus, ...), and with PyAV at
hand what phones and browsers record (ffmpeg.py). Size, length, channels and sample rate are checked
from the header before anything is decoded, and decoding goes block by block, so a hostile or
mistaken file costs an error and not the memory. What a container promises is decoded or is an
error, and of the containers that containers.py goes through, joined files are all read or refused.
"""

from __future__ import annotations

import io
import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import ffmpeg
from distilwhisper_lib.speech.headers import (
    MAX_SECONDS,
    READ_ERRORS,
    Header,
    Readable,
    Source,
    cut_short,
    damaged,
    header_of,
    name_of,
    stream_of,
    unreadable,
)

POSITIONS_PER_SECOND = 50  # two convolutions turn mel frames of 10 ms into 20 ms

SAMPLE_RATE = 16_000  # Whisper's
# An MP3 frame is 0.07 s, and who writes lengths down rounds them to a tenth.
LENGTH_SLACK = 0.1
# Quieter than three steps of a 16-bit recording: nothing was recorded.
SILENCE = 1e-4
QUARTER = 0.25  # seconds: shorter silences belong to speech
# Channels whose mean has less than this share of the louder one's energy (-20 dB) cancel out.
_CANCELS = 0.01
# What a person may want to know of how a recording was read.
FFMPEG_READ = "decoded by FFmpeg"
JOINED = "joined files read one after the other"
LOUDER = "louder channel taken: their mean cancels out"
UNTOLD = "the file does not tell its length: were its end missing, nobody would see"
HALF_SILENT = "more than half of it is silence"

# Segment ends come rounded, and codecs pad: this far outside the file is still inside.
SLACK_SECONDS = 0.02
# Decoded containers kept for the next segment: 512 MiB are 2.3 hours.
CACHE_BYTES = 512 * 2**20
BLOCK_FRAMES = 2**20


class Heard(NamedTuple):
    """What decoding a whole file told."""

    seconds: float
    silences: tuple[tuple[float, float], ...]  # from and to, in seconds, to a tenth
    notes: tuple[str, ...]  # what a person may want to know of how it was read

    @property
    def silent(self) -> bool:
        """Whether nothing was recorded."""
        return self.silences == ((0.0, self.seconds),)


def read_audio(
    source: Readable, start: float | None = None, end: float | None = None
) -> np.ndarray:
    """The samples of a file, or of its segment from `start` to `end` in seconds.

    In this process: for files that were checked. `decoding.read_audio` is for those that were not.

    `source` is a path, or the bytes of a whole file as a data set or an upload holds them.

    Returns float32 of shape (samples,), mono (the mean of the channels, or the louder one where
    they cancel out) at 16 kHz, in [-1, 1] for integer formats; the caller owns the array. None or
    NaN for `start` or `end` means the file's.

    A segment is cut from the decoded whole, which a small cache keeps: seeking in Opus, Vorbis
    and MP3 does not give the samples that decoding from the beginning gives (libsndfile 1.2.2,
    Opus: two seeks in three differ by up to 1 % of full scale). Only 16 kHz PCM is read in place.

    Raises `UserError` naming the file when it is missing, empty, unreadable or above the caps,
    and when the segment is not inside it.
    """
    start, end = _bound(start), _bound(end)
    source = _source(source)
    if isinstance(source, bytes):
        samples = decode(source, header_of(source))
        first, last = _segment(source, start, end, len(samples))
        return samples[first:last]
    if start is None and end is None:
        return decode(source, header_of(source))
    if (samples := CACHE.get(source)) is None:
        header = header_of(source)
        if header.rate == SAMPLE_RATE and header.exact_seek:
            first, last = _segment(source, start, end, header.frames)
            return decode(source, header, first, last)
        # Before the decoding, which takes longer than finding the segment outside the file.
        _segment(source, start, end, round(header.seconds * SAMPLE_RATE))
        samples = CACHE.put(source, decode(source, header))
    first, last = _segment(source, start, end, len(samples))
    return samples[first:last].copy()


def audio_seconds(path: str | Path) -> float:
    """The length of a file in seconds, from its header; errors as `read_audio`."""
    return header_of(Path(path)).seconds


def decoded_seconds(source: Readable, far: float = math.inf) -> float:
    """The length that decoding gives: slower than `audio_seconds`, and sure that all is there.

    Where the header says more than `far` seconds, nothing is decoded and that is the answer.
    """
    return listen(source, far).seconds


def listen(source: Readable, far: float = math.inf) -> Heard:
    """Decode a whole file and say what it is; errors as `read_audio`.

    `far` as in `decoded_seconds`.
    """
    source = _source(source)
    header = header_of(source)
    if header.seconds > far:
        return Heard(header.seconds, (), ())
    frames, channel, tenth = 0, _channel(source, header), max(1, header.rate // 10)
    rest, peaks = np.zeros(0, np.float32), []  # peaks of each tenth of a second
    for block in decode_blocks(source, header, channel, 0, header.frames):
        frames += len(block)
        block = np.abs(np.concatenate([rest, block]))
        whole = len(block) - len(block) % tenth
        peaks.append(block[:whole].reshape(-1, tenth).max(1))
        rest = block[whole:]
    if len(rest):
        peaks.append(rest.max(keepdims=True))
    notes = [FFMPEG_READ] * bool(header.demuxer) + [JOINED] * (len(header.parts) > 1)
    notes += [LOUDER] * (channel is not None)
    seconds = frames / header.rate
    silences = _silences(np.concatenate(peaks) if peaks else rest, tenth / header.rate, seconds)
    notes += [UNTOLD] * (not header.told)
    notes += [HALF_SILENT] * (seconds / 2 < sum(b - a for a, b in silences) < seconds)
    return Heard(seconds, silences, tuple(notes))


def _silences(peaks: np.ndarray, step: float, seconds: float) -> tuple[tuple[float, float], ...]:
    """Where peaks, one a `step`, stay below SILENCE for a QUARTER, or all the time."""
    quiet = peaks < SILENCE
    if quiet.all():
        return ((0.0, seconds),)
    edges = np.flatnonzero(np.diff(np.pad(quiet, 1).astype(np.int8))).reshape(-1, 2)
    spans = [(float(a * step), min(float(b * step), seconds)) for a, b in edges]
    return tuple((a, b) for a, b in spans if b - a > QUARTER)


def is_silent(samples: np.ndarray) -> bool:
    """Whether nothing in (samples,) is louder than SILENCE."""
    return not len(samples) or float(np.abs(samples).max()) < SILENCE


def check_segment(path: str | Path, start: float | None, end: float | None, seconds: float) -> None:
    """Raise `UserError` unless [start, end) lies within a file of this length in seconds."""
    _segment(Path(path), _bound(start), _bound(end), round(seconds * SAMPLE_RATE))


def _source(given: Readable) -> Source:
    return bytes(given) if isinstance(given, bytes | bytearray | memoryview) else Path(given)


def decode(source: Source, header: Header, first: int = 0, last: int | None = None) -> np.ndarray:
    """Frames `first` to `last` as float32 (samples,), mixed down and resampled block by block.

    At no time is there more than the result and a few blocks.
    """
    count = (header.frames if last is None else last) - first
    # Never filled up: soxr rounds the length, and lossy files may hold less than they say.
    samples = np.empty(math.ceil(count * SAMPLE_RATE / header.rate) + 1, dtype=np.float32)
    filled = 0
    blocks = decode_blocks(source, header, _channel(source, header), first, count)
    for block in _resample(blocks, header.rate):
        if filled + len(block) > len(samples):  # an FFmpeg container counts roughly
            room = np.empty(len(samples) + len(block), dtype=np.float32)
            samples = np.concatenate([samples[:filled], room])
        samples[filled : filled + len(block)] = block
        filled += len(block)
    return samples[:filled]


def decode_blocks(
    source: Source, header: Header, channel: int | None, first: int, count: int
) -> Iterator[np.ndarray]:
    """`count` frames from `first` on as blocks of float32 (frames,), or an error if some lack.

    ``channel``: the one that is heard, None for the mean of all.
    """
    decoded = 0
    for block in _blocks(source, header, first, count):
        if not np.isfinite(block).all():
            raise UserError(f"{name_of(source)} holds NaN or infinite samples: export it again.")
        decoded += len(block)
        # (frames, channels) -> (frames,)
        yield block.mean(axis=1) if channel is None else np.ascontiguousarray(block[:, channel])
    if count - decoded > LENGTH_SLACK * header.rate:
        raise cut_short(source, f"{decoded} of {count} frames could be decoded")


def _channel(source: Source, header: Header) -> int | None:
    """The louder channel of a file whose channels cancel out in their mean, else None."""
    if header.channels == 1:
        return None
    if isinstance(source, bytes):
        return _louder(source, header)
    status = os.stat(source)
    return _remembered(str(source), header, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2**17)  # a training reads each file of a corpus again in every epoch
def _remembered(path: str, header: Header, *_: int) -> int | None:
    return _louder(Path(path), header)


def _louder(source: Source, header: Header) -> int | None:
    """Decided by the whole file, so that no segment and no block of it goes another way."""
    channels, mean = np.zeros(header.channels), 0.0
    for block in _blocks(source, header, 0, header.frames):
        channels += np.square(block, dtype=np.float64).sum(axis=0)
        mean += float(np.square(block.mean(axis=1), dtype=np.float64).sum())
    return int(channels.argmax()) if mean < _CANCELS * channels.max() else None


def _blocks(source: Source, header: Header, first: int, count: int) -> Iterator[np.ndarray]:
    """Float32 (frames, channels): up to `count` frames from `first` on, all of FFmpeg's."""
    broken = (*READ_ERRORS, *(ffmpeg.errors() if header.demuxer else ()))
    try:
        if header.demuxer:
            yield from _foreign_blocks(source, header)
            return
        for part in header.parts or (stream_of(source),):
            yield from _read_blocks(io.BytesIO(part) if header.parts else part, first, count)
    except UserError:  # which is a ValueError, as some of PyAV's are
        raise
    except broken as error:
        # libsndfile knows the format by now, so what breaks is this file.
        raise (unreadable if header.demuxer else damaged)(source, error) from error


def _foreign_blocks(source: Source, header: Header) -> Iterator[np.ndarray]:
    opened, frames = source if isinstance(source, bytes) else str(source), 0
    for block in ffmpeg.blocks(opened, header.demuxer):
        frames += len(block)
        if frames > MAX_SECONDS * header.rate:
            raise UserError(f"{name_of(source)} is longer than {MAX_SECONDS} s: split it.")
        yield block


def _read_blocks(stream: str | int | io.BytesIO, first: int, count: int) -> Iterator[np.ndarray]:
    # Not SoundFile.blocks: soundfile 0.14 fills up with leftover memory where a file ends early.
    with soundfile.SoundFile(stream) as file:
        if first:
            file.seek(first)
        while count > 0:
            block = file.read(min(count, BLOCK_FRAMES), dtype="float32", always_2d=True)
            if not len(block):
                return
            yield block
            count -= len(block)


def _resample(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The blocks at 16 kHz, each as soon as the next one shows that it is not the last."""
    if rate == SAMPLE_RATE:
        yield from blocks
        return
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
    held = next(blocks)
    for block in blocks:
        yield stream.resample_chunk(held)
        held = block
    yield stream.resample_chunk(held, last=True)


def _segment(
    source: Source, start: float | None, end: float | None, length: int
) -> tuple[int, int]:
    """First and last sample of a segment, in a file of `length` samples at 16 kHz."""
    seconds = length / SAMPLE_RATE
    first = 0.0 if start is None else start
    last = seconds if end is None else end
    if not 0 <= first < last <= seconds + SLACK_SECONDS or first >= seconds:
        raise UserError(
            f"Segment {first:g} to {last:g} s is not inside {name_of(source, 'audio')}, which is "
            f"{seconds:.3f} s long: correct start and end."
        )
    return round(first * SAMPLE_RATE), min(round(last * SAMPLE_RATE), length)


def _bound(seconds: float | None) -> float | None:
    """None for NaN, which is how a table says "the whole file"."""
    return None if seconds is None or math.isnan(seconds) else float(seconds)


class DecodedFiles:
    """The most recently used decoded files, up to `CACHE_BYTES`; a changed file is a new one."""

    def __init__(self) -> None:
        self._arrays: OrderedDict[tuple, np.ndarray] = OrderedDict()
        self._lock = Lock()

    @staticmethod
    def _key(path: Path) -> tuple:
        status = os.stat(path)
        return str(path), status.st_mtime_ns, status.st_size

    def get(self, path: Path) -> np.ndarray | None:
        try:
            key = self._key(path)
        except OSError:  # the reading that follows says what is wrong
            return None
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def put(self, path: Path, samples: np.ndarray) -> np.ndarray:
        with self._lock:
            self._arrays[self._key(path)] = samples
            while len(self._arrays) > 1 and self._total() > CACHE_BYTES:
                self._arrays.popitem(last=False)
        return samples

    def _total(self) -> int:
        return sum(samples.nbytes for samples in self._arrays.values())


CACHE = DecodedFiles()
