"""What a sound file says of itself, held to what its container holds, and to the caps."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import soundfile

from distilwhisper_lib.errors import UserError
from distilwhisper_lib.speech import containers, ffmpeg

MAX_BYTES = 2**30
MAX_SECONDS = 3 * 3600
MAX_CHANNELS = 16
MIN_RATE, MAX_RATE = 4_000, 384_000

# An encoder's delays, which a decoder takes off again: MPEG frames of samples.
_DELAYS = 4 * 1152
# Formats and codings in which seeking gives the very samples that decoding from the start gives.
_EXACT_SEEK = {("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")}
# soundfile takes a name that ends in .raw for samples without a header: TypeError.
# FFmpeg's demuxers that guess the length of a file by its first frames.
_GUESSED = {"aac", "amr"}
_TEXT = 40  # characters of a text that is no recording
READ_ERRORS = (soundfile.SoundFileError, OSError, TypeError)

Readable = str | Path | bytes | bytearray | memoryview  # what callers give
Source = Path | bytes


class Header(NamedTuple):
    """What a file says of itself: `frames` samples in each of `channels` at `rate` Hz."""

    frames: int  # by FFmpeg's containers, roughly
    rate: int
    channels: int
    exact_seek: bool
    parts: tuple[bytes, ...] = ()  # what is decoded one after the other in its place
    demuxer: str | None = None  # FFmpeg's, where libsndfile cannot read it
    told: bool = True  # whether it would be seen that its end is missing

    @property
    def seconds(self) -> float:
        return self.frames / self.rate


def header_of(source: Source) -> Header:
    """The header as libsndfile reads it, else FFmpeg, after the caps, and held to its container."""
    size = len(source) if isinstance(source, bytes) else _file_size(source)
    if size == 0:
        raise UserError(f"{name_of(source)} is empty (0 bytes): copy or download it again.")
    if size > MAX_BYTES:
        raise UserError(f"{name_of(source)} has {size} bytes, more than {MAX_BYTES}: split it.")
    try:
        info = soundfile.info(stream_of(source))
    except READ_ERRORS as error:
        header = _joined_chunks(source) or _foreign(source, error)
    else:
        header = _held(source, info)
    _check_caps(source, header)
    return header


def _held(source: Source, info: Any) -> Header:
    """libsndfile's header, if its container holds that; else what it holds."""
    if not containers.can_count(info.format):
        raise UserError(
            f"{name_of(source)} is {info.format} by its content, of which nobody would see that a "
            "part is missing: convert it to WAV or FLAC."
        )
    if info.frames > MAX_SECONDS * MAX_RATE:  # libsndfile's number for a FLAC that tells none
        raise UserError(
            f"{name_of(source)} does not tell its length, as {info.format} that was written to a "
            "pipe: convert it to WAV."
        )
    with _whole(source) as data:
        found = containers.streams(data, info.format)
        if fault := next((stream.fault for stream in found if stream.fault), None):
            raise _broken(source, fault)
        _refuse_another(source, info.format)
        told = all(stream.told for stream in found)
        if len(found) > 1 or found[0].size_at or not _agrees(found[0], info.frames):
            try:
                parts = [_part(data, stream) for stream in found]
                return _in_parts(source, parts)._replace(told=told)
            except READ_ERRORS as error:  # what follows the first file is broken
                raise unreadable(source, error) from error
    exact_seek = (info.format, info.subtype) in _EXACT_SEEK
    return Header(info.frames, info.samplerate, info.channels, exact_seek, told=told)


def _refuse_another(source: Source, kind: str) -> None:
    """Raise `UserError` where a file goes on as one of another kind, which nobody would hear."""
    if isinstance(source, bytes):
        other = containers.another(source, kind)
    else:
        status = os.stat(source)
        other = _other_in(str(source), kind, status.st_mtime_ns, status.st_size)
    if other:
        raise UserError(
            f"{name_of(source)} goes on as a file of another kind ({other}), which would not be "
            "heard: split it."
        )


@lru_cache(maxsize=2**17)  # a training reads each file of a corpus again in every epoch
def _other_in(path: str, kind: str, *_: int) -> str | None:
    with _whole(Path(path)) as data:
        return containers.another(data, kind)


def _in_parts(source: Source, parts: list[bytes]) -> Header:
    heads = [soundfile.info(io.BytesIO(part)) for part in parts]
    kinds = list(dict.fromkeys((head.samplerate, head.channels) for head in heads))
    if len(kinds) > 1:
        told = " with one of ".join(f"{rate} Hz and {count} channels" for rate, count in kinds)
        raise UserError(f"{name_of(source)} joins a recording of {told}: split it.")
    return Header(sum(h.frames for h in heads), *kinds[0], exact_seek=False, parts=tuple(parts))


def _joined_chunks(source: Source) -> Header | None:
    """Joined WAV or AIFF files, which libsndfile refuses; None if it is anything else."""
    with _whole(source) as data:
        kind = {b"RIFF": "WAV", b"FORM": "AIFF"}.get(data[:4])
        found = containers.streams(data, kind or "")
        if len(found) == 1:
            return None
        if found[-1].fault:
            raise _broken(source, found[-1].fault)
        try:
            return _in_parts(source, [_part(data, stream) for stream in found])
        except READ_ERRORS:
            return None


def _agrees(stream: containers.Stream, frames: int) -> bool:
    """Whether what libsndfile will decode of a stream is what was counted."""
    if stream.frames is None:
        return True
    if stream.told:  # what lacks is found when it is decoded
        return stream.frames - frames <= _DELAYS
    return abs(stream.frames - frames) <= _DELAYS


def _part(data: containers.Bytes, stream: containers.Stream) -> bytes:
    part = data[stream.first : stream.last]
    if stream.size_at:
        return containers.with_size(part, stream.size_at, "<" if part[:4] == b"RIFF" else ">")
    if stream.frames and not _agrees(stream, soundfile.info(io.BytesIO(part)).frames):
        return containers.with_length(part, stream.frames)
    return part


def _foreign(source: Source, error: Exception) -> Header:
    """The header of what libsndfile cannot read, by FFmpeg; `error` is what libsndfile said."""
    opened = source if isinstance(source, bytes) else str(source)
    kind = ffmpeg.kind_of(opened)
    if kind is None:
        raise unreadable(source, error) from error
    demuxer, called = kind
    with _whole(source) as data:
        found = containers.streams(data, demuxer)
        told = demuxer not in _GUESSED and not (demuxer == "mov" and data.find(b"moof") > 0)
    if found[-1].fault:
        raise _broken(source, found[-1].fault)
    _refuse_another(source, demuxer)
    if len(found) > 1:  # FFmpeg would play the first
        raise UserError(
            f"{name_of(source)} is {len(found)} files of {called} joined end to end, of which only "
            "the first can be read: split it."
        )
    if not ffmpeg.has_decoder():
        raise UserError(
            f"{name_of(source)} is {called} by its content, which takes PyAV to read: "
            "pip install '.[recordings]', or convert it to WAV, FLAC, MP3 or Ogg."
        ) from error
    try:
        sound = ffmpeg.sound_of(opened, demuxer)
        known = None if demuxer in _GUESSED else sound.seconds
        seconds = known or _counted(opened, demuxer, sound.rate)
    except (UserError, *ffmpeg.errors()) as fault:
        raise unreadable(source, fault) from fault
    frames = round(seconds * sound.rate)
    told = told and known is not None
    return Header(frames, sound.rate, sound.channels, False, demuxer=demuxer, told=told)


def _counted(opened: str | bytes, demuxer: str, rate: int) -> float:
    """The seconds of a file whose container does not tell, up to a little more than is allowed."""
    frames = 0
    for block in ffmpeg.blocks(opened, demuxer):
        frames += len(block)
        if frames > MAX_SECONDS * rate:
            break
    return frames / rate


@contextmanager
def _whole(source: Source) -> Iterator[containers.Bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _file_size(path: Path) -> int:
    if not os.path.exists(path):  # Path.exists raises at a name of 300 characters
        raise UserError(f"Audio file {path} does not exist: check its name and folder.")
    if not path.is_file():
        raise UserError(f"Audio file {path} is not a regular file: give the path of a recording.")
    return path.stat().st_size


def _check_caps(source: Source, header: Header) -> None:
    if not MIN_RATE <= header.rate <= MAX_RATE:
        raise UserError(
            f"{name_of(source)} has a sample rate of {header.rate} Hz, "
            f"expected {MIN_RATE} to {MAX_RATE}: convert it to 16 kHz."
        )
    if not 1 <= header.channels <= MAX_CHANNELS:
        raise UserError(
            f"{name_of(source)} has {header.channels} channels, expected 1 to {MAX_CHANNELS}: "
            "mix it down to one."
        )
    if header.frames <= 0:
        raise UserError(f"{name_of(source)} holds no samples: leave it out or record it again.")
    if header.seconds > MAX_SECONDS:
        raise UserError(
            f"{name_of(source)} is {header.seconds:.0f} s long, more than {MAX_SECONDS}: split it."
        )


def cut_short(source: Source, what: str) -> UserError:
    return _broken(source, f"is cut short: {what}")


def _broken(source: Source, fault: str) -> UserError:
    return UserError(f"{name_of(source)} {fault}; copy or download it again.")


def damaged(source: Source, error: Exception) -> UserError:
    """Of a file whose header promises what its decoder cannot find."""
    return UserError(
        f"{name_of(source)} is damaged or cut short ({_said(error)}): copy or download it again."
    )


def unreadable(source: Source, error: Exception) -> UserError:
    """Of a file that no decoder here takes: spoilt, as FFmpeg finds, or of another kind."""
    if ffmpeg.is_damage(error):
        return damaged(source, error)
    if begins := _text_in(source):
        return _broken(source, f"cannot be read: it is a text, which begins {begins!r}")
    return UserError(
        f"{name_of(source)} cannot be read ({_said(error)}): convert it to WAV, FLAC, MP3 or Ogg."
    )


def _text_in(source: Source) -> str:
    """The first characters of a file that is a text, such as a page that tells of an error."""
    with _whole(source) as data:
        head = data[:_TEXT]
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError:
        return ""
    return text if "".join(text.split()).isprintable() else ""


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).rsplit(": ", 1)[-1].rstrip(".")


def name_of(source: Readable, noun: str = "Audio") -> str:
    """How messages call a file, or bytes that have no name."""
    named = isinstance(source, str | Path)
    given = source if named else f"of {len(source)} bytes in memory"
    return f"{noun} file {given}"


def stream_of(source: Source) -> str | int | io.BytesIO:
    """What libsndfile opens, once, and closes; it knows the format by its content.

    A descriptor rather than a name, by which it would look for what a Mac leaves beside a file
    (``._a.mp3``), and then refuse the file.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return os.open(source, os.O_RDONLY) if os.name == "posix" else str(source)
