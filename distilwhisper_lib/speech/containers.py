"""What a sound file holds, counted from its container and not believed of its header.

libsndfile believes headers: it plays the first of several joined files, the half that an MP3
without a length header seems to have, and of a WAV that was cut short what is there, without a
word. Here the containers that recorders write and `cat` joins are gone through once, undecoded.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

Bytes = bytes | mmap.mmap  # a whole file


class Stream(NamedTuple):
    """One of the files that lie end to end in a file, mostly its only one."""

    first: int  # its bytes: first to last
    last: int
    frames: int | None = None  # MP3: samples a channel, the codec's delays among them
    told: bool = True  # whether it would be seen that its end is missing
    fault: str | None = None  # what is wrong with it, as the end of a sentence
    size_at: int | None = (
        None  # where, from `first`, a size of its sound stands that was never told
    )


def streams(data: Bytes, kind: str) -> list[Stream]:
    """The streams of a whole file of a ``kind``; one where there is no counting.

    ``kind`` is libsndfile's format, or FFmpeg's demuxer (in small letters) for what FFmpeg reads.
    A ``fault`` is a promise of the container that the file does not keep.
    """
    count = _COUNTS.get(kind)
    return (list(count(data)) if count else []) or [Stream(0, len(data))]


# How files of other kinds begin that `cat` may have joined to one: what is quickly looked for, and
# what has to follow it.
_OTHERS = (
    ("WAV", b"RIFF", rb"....WAVE"),
    ("FLAC", b"fLaC\0\0\0\x22", rb""),
    ("OGG", b"OggS\0\2", rb"\x00{8}"),
    ("MP3", b"ID3", rb"[\x02-\x04]\x00[^\x80-\xff]{5}"),
    ("MP3", b"Xing\0\0\0", rb""),
    ("MP3", b"Info\0\0\0", rb""),
    ("mov", b"ftyp", rb"M4A|M4V|isom|mp4|3gp"),
    ("matroska", b"\x1a\x45\xdf\xa3", rb".{1,60}?(?:webm|matroska)"),
)
_BLOCK, _REACH = 2**20, 80
# Kinds that may hold such a beginning within: RIFF has room for the frames of any codec.
_ROOMY = {"WAV", "WAVEX", "RF64", "AIFF", "W64", "CAF", "caf", "asf", "matroska"}


def another(data: Bytes, kind: str) -> str | None:
    """The kind of another file that begins within one of a ``kind``, behind its first kilobyte."""
    marks = [
        (other, mark, follows)
        for other, mark, follows in _OTHERS
        if not (other == kind or other in ("WAV", "MP3") and kind in _ROOMY)
    ]
    for first in range(_SLACK, len(data), _BLOCK):
        block = data[first : first + _BLOCK + _REACH]  # bytes are searched faster than a mapping
        for other, mark, follows in marks:
            place = block.find(mark)
            while place >= 0:
                end = place + len(mark)
                if re.match(follows, block[end : end + _REACH], re.DOTALL):
                    return other
                place = block.find(mark, end)
    return None


def can_count(kind: str) -> bool:
    """Whether it would be seen that a file of this kind was cut short."""
    return kind in _COUNTS


# WAV, AIFF, AU, W64, CAF, SPHERE, MPEG-4: sizes that are told -------------------------------


def _chunked(data: Bytes, order: str, sound: bytes) -> Iterator[Stream]:
    """RIFF and FORM files: a chunk of another file begins where this one's ends."""
    first = 0
    while first < len(data):
        stream, end = _one_form(data, first, order, sound)
        # What follows a file is another, or a tail that some program left: that is no sound.
        again = data[end : end + 4] == data[:4] and len(data) - end > 12
        yield stream._replace(last=end if again else len(data))
        if not again:
            return
        first = end


def _one_form(data: Bytes, first: int, order: str, sound: bytes) -> tuple[Stream, int]:
    place, start = first + 12, data[first : first + 4]
    large = 0
    while place + 8 <= len(data):
        name = data[place : place + 4]
        if name == start:  # another file, whatever this one's first line says
            break
        (size,) = struct.unpack_from(f"{order}I", data, place + 4)
        if name == b"ds64" and place + 24 <= len(data):  # RF64: the sound's size, in 64 bits
            (large,) = struct.unpack_from("<Q", data, place + 16)
        if name == sound and size == 0xFFFFFFFF and 0 < large < 1 << 63:
            size = large
        end = place + 8 + size
        # Who writes to a pipe cannot come back and fill in the size.
        piped = not size or size in _PIPED and size != large
        if name == sound and (piped or end > len(data) + _SLACK):
            if not size and _goes_on(data, end, order):
                place = end
                continue  # it holds nothing
            fault = None if piped else _short(size, len(data) - place - 8)
            told_not = None if size else place + 4 - first
            whole = Stream(first, len(data), None, not piped, fault, told_not)
            return whole, len(data)
        place = end + size % 2
        if name == sound and not (_goes_on(data, place, order) or _goes_on(data, end, order)):
            fault = f"has {len(data) - end} bytes after the {size} of sound that its header tells"
            return Stream(first, len(data), fault=fault), len(data)
    return Stream(first, min(place, len(data))), min(place, len(data))


def _goes_on(data: Bytes, place: int, order: str) -> bool:
    """Whether a chunk or a file begins here, or nothing is left but what programs leave behind."""
    rest = len(data) - place
    if rest <= _SLACK or data[place : place + 4] == data[:4]:
        return True
    name, size = struct.unpack_from(f"{order}4sI", data, place)
    is_chunk = all(0x20 <= byte < 0x7F for byte in name) and size <= rest
    return is_chunk or not data[place:].strip(b"\0")


def with_size(data: bytes, place: int, order: str = "<") -> bytes:
    """A WAV whose sound goes to its end, told so where its size stands."""
    told = bytearray(data)
    struct.pack_into(f"{order}I", told, place, len(data) - place - 4)
    struct.pack_into(f"{order}I", told, 4, len(data) - 8)
    return bytes(told)


# Sizes that stand for "until the end", as sox, ffmpeg and arecord write them.
_PIPED = range(0x7FFF0000, 0x100000000)
_SLACK = 1024  # bytes that careless programs miscount: less than a frame of codecs


def _short(promised: int, there: int, what: str = " of sound") -> str:
    return f"is cut short: {there} of {promised} bytes{what} are there"


def _sized(
    data: Bytes, mark: bytes, length: Callable[[Bytes, int], int | None], at: int = 0
) -> Iterator[Stream]:
    """Files with ``mark`` at their byte ``at`` that are ``length(data, first)`` bytes long.

    None is a length that nobody told: to the end. What follows a file is another if it has the
    mark, and else a tail that is no sound.
    """
    first = 0
    while True:
        size = length(data, first)
        there = len(data) - first
        if size is None or size > there:
            cut = size is not None and size > there + _SLACK
            yield Stream(first, len(data), fault=_short(size, there, "") if cut else None)
            return
        last = first + size
        again = size > 0 and data[last + at : last + at + len(mark)] == mark
        yield Stream(first, last if again else len(data))
        if not again:
            return
        first = last


def _au_length(data: Bytes, first: int) -> int | None:
    offset, size = struct.unpack_from(">II", data, first + 4) if len(data) - first >= 12 else (0, 0)
    return None if size in _PIPED else offset + size


def _w64_length(data: Bytes, first: int) -> int | None:
    """After a name of 16 bytes; what a pipe was given is not told."""
    (size,) = struct.unpack_from("<Q", data, first + 16) if len(data) - first >= 24 else (0,)
    return size if 0 < size < 1 << 63 else None


def _caf_length(data: Bytes, first: int) -> int | None:
    """Chunks of a name and 64 bits; those of a sound whose size was never filled in have -1."""
    place = first + 8
    while place + 12 <= len(data) and data[place : place + 4] != b"caff":
        (size,) = struct.unpack_from(">q", data, place + 4)
        if size < 0:
            return None
        if place + 12 + size > len(data) and data[place : place + 4] != b"data":
            break  # a tail
        place += 12 + size
    return place - first


def _nist_length(data: Bytes, first: int) -> int | None:
    """SPHERE: lines of text, the second of which tells how long they are, and samples."""
    head = re.match(rb"NIST_1A\n {0,7}(\d{1,7})\n", data[first : first + 16])
    size = int(head[1]) if head else 0
    told = dict(re.findall(rb"\n(\w+) -(?:i|s\d+) (\d{1,15})(?=\n)", data[first : first + size]))
    fields = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if not all(name in told for name in fields):
        return None
    return size + math.prod(int(told[name]) for name in fields)


def _mov_length(data: Bytes, first: int) -> int | None:
    """Boxes of 32 bits and a name, or of 64 bits behind it; the one of size 0 is the last."""
    place = first
    while place + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, place)
        if name == b"ftyp" and place > first:
            break
        if size == 1 and place + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, place + 8)
        if size < 8:  # to the end, or no box
            return None
        if place + size > len(data) and name not in (b"mdat", b"moov", b"moof"):
            break  # a tail
        place += size
    return place - first


# Files that begin with a mark which nothing else has -----------------------------------------

_MARKS = {
    "FLAC": b"fLaC\x00\x00\x00\x22",  # and a block of 34 bytes
    "amr": b"#!AMR",
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
}


def _marked(data: Bytes, mark: bytes) -> Iterator[Stream]:
    first, later = 0, data.find(mark, max(data.find(mark), 0) + 1)
    while later > 0:
        yield Stream(first, later)
        first, later = later, data.find(mark, later + 1)
    yield Stream(first, len(data))


# Ogg: pages ---------------------------------------------------------------------------------


class _Page(NamedTuple):
    begins: bool
    ends: bool
    serial: int
    number: int
    sound: bool  # whether its bytes are those that were written
    last: int  # where it ends


def _ogg(data: Bytes) -> Iterator[Stream]:
    """A stream begins with pages that say so; streams side by side begin together. Each numbers
    its pages, and its last one says that it is."""
    first = place = 0
    begun = False  # other pages of the stream were met
    due: dict[int, int] = {}  # number of the next page, of streams that have not ended
    while place < len(data):
        page = _page(data, place)
        fault = _ogg_fault(data, place, page, due)
        if page is None or fault:
            yield Stream(first, len(data), told=not due, fault=fault)
            return
        if page.begins and begun:
            yield Stream(first, place, told=not due)
            first, begun, due = place, False, {}
        begun = begun or not page.begins
        due[page.serial] = page.number + 1
        if page.ends:
            del due[page.serial]
        place = page.last
    yield Stream(first, len(data), told=not due)


def _ogg_fault(data: Bytes, place: int, page: _Page | None, due: dict[int, int]) -> str | None:
    if page is None:
        if b"OggS".startswith(data[place : place + 4]):
            return "is cut short: its last page is not whole"
        return f"is damaged or cut short: what stands at byte {place} is no page" if due else None
    if not page.sound:
        return f"is damaged: the page at byte {place} has another checksum than it says"
    if not page.begins and page.number != due.get(page.serial, page.number):
        return f"lacks the pages before byte {place}: it has been cut"
    return None


_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checksum(page: bytes) -> int:
    """Ogg's CRC (RFC 3533): zlib's with the bits of bytes and result the other way round, and
    neither begun nor ended with ones."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _page(data: Bytes, place: int) -> _Page | None:
    """The page that begins here, or None where no whole one does."""
    if len(data) - place < 27 or data[place : place + 4] != b"OggS":
        return None
    kind, serial, number, told, segments = struct.unpack_from("<xxxxxB8xIIIB", data, place)
    body = place + 27 + segments
    last = body + sum(data[place + 27 : body])
    if last > len(data):
        return None
    page = data[place : place + 22] + bytes(4) + data[place + 26 : last]
    return _Page(bool(kind & 2), bool(kind & 4), serial, number, _checksum(page) == told, last)


# MP3: frames one after the other --------------------------------------------------------------

# By version (0: 2.5, 2: 2, 3: 1). Source: ISO 11172-3, 13818-3, layer III.
_RATES = {0: (11025, 12000, 8000), 2: (22050, 24000, 16000), 3: (44100, 48000, 32000)}
_KILOBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class _Frame(NamedTuple):
    length: int  # bytes
    samples: int
    tag: int  # where a frame that holds no sound has its tag


def _frame(data: Bytes, place: int) -> _Frame | None:
    if place + 4 > len(data):
        return None
    (head,) = struct.unpack_from(">I", data, place)
    version, layer, bits, rate = head >> 19 & 3, head >> 17 & 3, head >> 12 & 15, head >> 10 & 3
    if head >> 21 != 0x7FF or version == 1 or layer != 1 or bits in (0, 15) or rate == 3:
        return None
    samples = 1152 if version == 3 else 576
    kilobits = _KILOBITS[3 if version == 3 else 2][bits]
    length = samples // 8 * kilobits * 1000 // _RATES[version][rate] + (head >> 9 & 1)
    mono = head >> 6 & 3 == 3
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return _Frame(length, samples, place + 4 + side)


def _is_tag(data: Bytes, place: int, frame: _Frame) -> bool:
    """Whether a frame is a length header (Xing's, LAME's, Fraunhofer's) rather than sound."""
    xing, vbri = data[frame.tag : frame.tag + 4], data[place + 36 : place + 40]
    return xing in (b"Xing", b"Info") or vbri == b"VBRI"


def _mp3(data: Bytes) -> Iterator[Stream]:
    """A stream begins with a tag or a length header."""
    first = place = frames = 0
    told = False
    while place < len(data):
        frame = _frame(data, place)
        ends = frame is None or place + frame.length > len(data)
        head = frame is not None and not ends and _is_tag(data, place, frame)
        tag = _id3(data, place)
        if frames and (head or tag):
            yield Stream(first, place, frames, told)
            first, frames, told = place, 0, False
        told = told or head
        if tag:
            place += tag
        elif ends:
            place = _next_frame(data, place + 1)
        else:
            frames += 0 if head else frame.samples
            place += frame.length
    if frames or not first:
        yield Stream(first, len(data), frames or None, told)


def _id3(data: Bytes, place: int) -> int:
    """The length of an ID3v2 tag that begins here, or 0."""
    if data[place : place + 3] != b"ID3" or place + 10 > len(data):
        return 0
    size = 0
    for byte in data[place + 6 : place + 10]:
        size = size << 7 | byte & 127
    return 10 + size


def _next_frame(data: Bytes, place: int) -> int:
    """The next place with two frames in a row: tags at the end and noise lie between."""
    while (place := data.find(b"\xff", place)) >= 0:
        frame = _frame(data, place)
        if frame and _frame(data, place + frame.length):
            return place
        place += 1
    return len(data)


def with_length(data: bytes, frames: int) -> bytes:
    """An MP3 behind a length header that tells its frames (samples): else only what a guess from
    its first bit rate gives is decoded."""
    place = _id3(data, 0)
    if _frame(data, place) is None:
        place = _next_frame(data, place)
    frame = _frame(data, place)
    head = bytearray(data[place : place + 4])
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0C | 9 << 4  # a bit rate with room for it, no padding
    silent = _frame(bytes(head), 0)
    body = bytes(head) + bytes(frame.tag - place - 4) + b"Xing"
    body += struct.pack(">II", 1, frames // frame.samples)
    return body.ljust(silent.length, b"\0") + data[place:]


_COUNTS: dict[str, Callable[[Bytes], Iterator[Stream]]] = {
    "WAV": lambda data: _chunked(data, "<", b"data"),
    "WAVEX": lambda data: _chunked(data, "<", b"data"),
    "AIFF": lambda data: _chunked(data, ">", b"SSND"),
    "RF64": lambda data: _chunked(data, "<", b"data"),
    "AU": lambda data: _sized(data, b".snd", _au_length),
    "W64": lambda data: _sized(data, b"riff", _w64_length),
    "NIST": lambda data: _sized(data, b"NIST_1A\n", _nist_length),
    "CAF": lambda data: _sized(data, b"caff", _caf_length),
    "caf": lambda data: _sized(data, b"caff", _caf_length),
    "mov": lambda data: _sized(data, b"ftyp", _mov_length, at=4),
    "FLAC": lambda data: _marked(data, _MARKS["FLAC"]),
    "amr": lambda data: _marked(data, _MARKS["amr"]),
    "asf": lambda data: _marked(data, _MARKS["asf"]),
    "OGG": _ogg,
    "MP3": _mp3,
}
