"""Sound files made unsound, by what they are: JSON, tables of text, archives, tensors, anything."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

Mutation = Callable[[Random, bytes], bytes]

OUTSIDE = "outside/secret.wav"  # a file beside the working folder that nothing may read or write
TEXTS = (
    "", " ", ".", "..", "/", f"../{OUTSIDE}", "../../x", "/etc/passwd", "/dev/zero", "a/../../x",
    "a\0b", "a" * 300, "a" * 70_000, "\ud800", "\u202e", "\r\n", "\u2028", "\t", ",", '"', "'", "#",
    "\\", "<script>alert(1)</script>", "=1+1", "NaN", "inf", "-1", "1e999", "9" * 5000, "0x10", "²",
    "null", "true", "ca", "xx", "%s", "{0}", "{}", "con", "~", "a b", "é", "\ufeff",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324)
_DEEP = "\ue000deep\ue000"  # stands for a list in a list, 100,000 deep, which json cannot write


def mutate(random: Random, name: str, content: bytes) -> bytes:
    """One to four changes to a file of this name."""
    kinds = {
        ".json": json_text, ".ipynb": json_text, ".jsonl": json_lines, ".csv": table, ".tsv": table,
        ".txt": table, ".yaml": table, ".jsonl.gz": zipped_lines, ".npz": arrays,
        ".safetensors": safetensors, ".tar.gz": archive, ".parquet": parquet,
    }  # fmt: skip
    by_kind = next((kinds[suffix] for suffix in kinds if name.endswith(suffix)), scramble)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        change = by_kind if random.random() < 0.85 else scramble
        content = change(random, content)
    return content


def scramble(random: Random, data: bytes) -> bytes:
    """Bytes flipped, cut, doubled, moved, put in."""
    place = random.randrange(len(data) + 1)
    end = min(len(data), place + random.choice((1, 2, 4, 8, 64, 1024)))
    way = random.randrange(6)
    if way == 0:
        return data[:place]
    if way == 1:
        return data[:place] + data[end:]
    if way == 2:
        return data[:end] + data[place:]
    if way == 3:
        size = random.choice((1, 4, 8, 4096))
        return data[:place] + random.randbytes(size) + data[place:]
    if way == 4:  # a size or an offset that lies
        number = random.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, random.getrandbits(32)))
        return data[:place] + struct.pack(random.choice("<>") + "I", number) + data[place + 4 :]
    return data[:place] + bytes([random.randrange(256)]) + data[place + 1 :]


def table(random: Random, data: bytes) -> bytes:
    """Fields and lines of text exchanged, doubled, dropped, and filled with what hurts."""
    text = data.decode("utf-8", errors="surrogateescape")
    separator = "\t" if "\t" in text else ","
    rows = [line.split(separator) for line in text.split("\n")]
    row = random.randrange(len(rows))
    column = random.randrange(len(rows[row]))
    way = random.randrange(6)
    if way < 3:
        rows[row][column] = random.choice(TEXTS)
    elif way == 3:
        rows.insert(random.randrange(len(rows)), list(rows[row]))
    elif way == 4:
        del rows[row][column]
    else:
        rows[row].insert(column, random.choice(TEXTS))
    changed = "\n".join(separator.join(fields) for fields in rows)
    return changed.encode("utf-8", errors="surrogatepass" if random.random() < 0.1 else "replace")


def json_text(random: Random, data: bytes) -> bytes:
    """One value, somewhere, replaced, dropped, doubled or renamed."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return scramble(random, data)
    holder = {"": value}
    _change(random, holder, "")
    text = json.dumps(holder.get("", random.choice(TEXTS)))
    deep = "[" * 100_000 + "]" * 100_000
    return text.replace(json.dumps(_DEEP), deep).encode()


def _change(random: Random, holder: Any, key: Any) -> None:
    """Go down from ``holder[key]``, and change what the way ends at."""
    value = holder[key]
    inner = list(value) if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    if inner and random.random() < 0.85:
        return _change(random, value, random.choice(inner))
    way = random.randrange(10)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[random.choice(TEXTS)] = holder.pop(key)
    elif way == 2 and isinstance(holder, dict):
        holder[random.choice(TEXTS)] = value
    elif way == 3 and _is_list(value):
        value.extend(value[:50])
    else:
        holder[key] = _anything(random)
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _anything(random: Random) -> Any:
    plain = (*TEXTS, *NUMBERS, None, True, False, float("nan"), float("inf"), [], {}, _DEEP)
    value = random.choice(plain)
    return random.choice((value, value, value, [value], {"a": value}, [[value], value]))


def json_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    if lines[place] and random.random() < 0.8:
        lines[place] = json_text(random, lines[place])
    else:
        lines.insert(place, random.choice((b"", b"{}", b"[]", b"null", b"1", b"{", *lines[:3])))
    return b"\n".join(lines)


def zipped_lines(random: Random, data: bytes) -> bytes:
    try:
        return gzip.compress(json_lines(random, gzip.decompress(data)), mtime=0)
    except (OSError, EOFError, zlib.error):
        return scramble(random, data)


def arrays(random: Random, data: bytes) -> bytes:
    """An npz file with an array of another shape, type or content; or with a pickle in it."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except Exception:  # whatever an earlier change has made of it
        return scramble(random, data)
    name = random.choice(sorted(held))
    array = held.pop(name)
    others = (
        None, array[:-1] if array.ndim else array, array.astype(np.float64) if array.dtype.kind in
        "iu" else array, -np.ones(3, int), np.full(3, 2**40), np.array("text"), np.zeros((2, 3)),
        np.array([None, {}], dtype=object), np.concatenate([np.atleast_1d(array)] * 2),
    )  # fmt: skip
    other = others[random.randrange(len(others))]
    if other is not None:
        held[name] = other
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **held)
    return buffer.getvalue()


def safetensors(random: Random, data: bytes) -> bytes:
    """The JSON at its beginning changed, with a length that fits; or its body."""
    if random.random() < 0.3 or len(data) < 8:
        return scramble(random, data)
    (length,) = struct.unpack("<Q", data[:8])
    head, body = data[8 : 8 + length], data[8 + length :]
    head = json_text(random, head)
    return struct.pack("<Q", len(head)) + head + body


def archive(random: Random, data: bytes) -> bytes:
    """A .tar.gz with one more member, of a kind or name that should not be there."""
    try:
        inner = gzip.decompress(data)
        if random.random() < 0.3:
            return gzip.compress(scramble(random, inner), 1)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=io.BytesIO(inner)) as old, tarfile.open(
            fileobj=buffer, mode="w", format=random.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        ) as new:  # fmt: skip
            members = [(m, old.extractfile(m).read() if m.isreg() else b"") for m in old]
            members.insert(random.randrange(len(members) + 1), _member(random, members))
            for member, content in members:
                new.addfile(member, io.BytesIO(content) if member.isreg() else None)
    except Exception:  # whatever an earlier change has made of it; names that tar cannot hold
        return scramble(random, data)
    return gzip.compress(buffer.getvalue(), 1)


def _member(random: Random, members: list[tuple[tarfile.TarInfo, bytes]]) -> Any:
    usual, content = random.choice(members)
    member = tarfile.TarInfo(random.choice((*TEXTS[:20], usual.name, f"{usual.name}/x")))
    kinds = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
             tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)  # fmt: skip
    member.type, member.mode = random.choice(kinds), random.choice((0o644, 0o000, 0o7777))
    member.linkname = random.choice(TEXTS[:10])
    member.size = len(content) if member.isreg() else 0
    return member, content


def parquet(random: Random, data: bytes) -> bytes:
    """A column dropped, renamed, of another type, or of values that hurt."""
    import pyarrow
    from pyarrow import parquet as files

    if random.random() < 0.3:
        return scramble(random, data)
    try:
        rows = files.read_table(io.BytesIO(data)).to_pylist()
        column = random.choice(sorted(rows[0]))
        value = random.choice((None, 1, "", "../x", b"x", {"bytes": b"x", "path": "../../x"},
                               {"bytes": None, "path": "/etc/passwd"}, [1]))  # fmt: skip
        if random.random() < 0.3:
            rows = [{k: v for k, v in row.items() if k != column} for row in rows]
        else:
            chosen = rows if random.random() < 0.5 else rows[:1]
            for row in chosen:
                row[column] = value
        buffer = io.BytesIO()
        files.write_table(pyarrow.Table.from_pylist(rows), buffer)
    except Exception:  # types that do not go together in one column
        return scramble(random, data)
    return buffer.getvalue()
