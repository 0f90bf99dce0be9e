"""Small corpora in the shape of the real ones, with everything that is wrong with those."""

from __future__ import annotations

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import soundfile

RATE = 16_000
COLUMNS_13 = (
    "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
)


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype("f4")


@cache  # libsndfile writes the time into float WAV: the same call has to give the same bytes
def encoded(seconds: float = 1.0, seed: int = 0, kind: str = "MP3", subtype=None) -> bytes:
    """A recording of noise as the bytes of a file; another seed is another recording."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(seconds, seed), RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


def tsv(rows: list[dict[str, object]], columns=COLUMNS_13) -> str:
    lines = ["\t".join(columns)]
    lines += ["\t".join(str(row.get(name, "")) for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


def clip(split: str, number: int, text: str | None = None, **others: object) -> dict[str, object]:
    """A good row of a table of Common Voice."""
    return {
        "client_id": f"voice-{split}-{number % 2}",
        "path": f"common_voice_ca_{split}{number:03d}.mp3",
        "sentence": text or f"frase {'abcdefghij'[number % 10]} de {split} {number}",
        "up_votes": 2,
        "down_votes": 0,
        "locale": "ca",
    } | others


def release(folder: Path, tables: dict[str, list[dict]], columns=COLUMNS_13) -> Path:
    """A release's language folder: tables, and a second of noise for every clip they name."""
    (folder / "clips").mkdir(parents=True)
    for name, rows in tables.items():
        (folder / name).write_text(tsv(rows, columns), encoding="utf-8")
        for number, row in enumerate(rows):
            seed = sum(map(ord, f"{name}{number}"))
            write_clip(folder, str(row["path"]), encoded(1.0 + number / 10, seed))
    return folder


def write_clip(folder: Path, name: str, data: bytes) -> None:
    if name and Path(name).name == name:
        (folder / "clips" / name).write_bytes(data)


def three_tables(rows: int = 3) -> dict[str, list[dict]]:
    return {
        f"{name}.tsv": [clip(name, number) for number in range(rows)]
        for name in ("train", "dev", "test")
    }


# Of the hostile release's train.tsv: what is left out, and why.
HOSTILE_DROPPED = {
    "common_voice_ca_gone": "missing file",
    "common_voice_ca_zero": "empty file",
    "common_voice_ca_cut": "unreadable audio",
    "common_voice_ca_text": "unreadable audio",
    "common_voice_ca_31s": "longer than the window",
    "common_voice_ca_label": "label over the limit",
    "common_voice_ca_silent": "empty text",
    "common_voice_ca_width": "empty text",
    "common_voice_ca_dots": "empty text",
    "common_voice_ca_tab": "malformed row",
    "common_voice_ca_votes": "malformed row",
    "common_voice_ca_train000": "named twice",
    "passwd": "unsafe file name",
    "common_voice_ca_link": "unsafe file name",
}
HOSTILE_KEPT = {
    "common_voice_ca_train000": "frase a de train 0",
    "common_voice_ca_quote1": '"Va dir hola',
    "common_voice_ca_quote2": 'i va marxar", diu',
    "common_voice_ca_null": "null",
    "common_voice_ca_na": "NA",
    "common_voice_ca_line": "una línia",
}


def hostile_release(folder: Path) -> Path:
    """Every fault that releases have had, or that somebody might put into one."""
    outside = folder.parent / "outside.mp3"
    rows = [
        clip("train", 0),
        clip("train", 0, text="el mateix clip"),
        clip("x", 0, '"Va dir hola', path="common_voice_ca_quote1.mp3"),
        clip("x", 0, 'i va marxar", diu', path="common_voice_ca_quote2.mp3"),
        clip("x", 0, "null", path="common_voice_ca_null.mp3"),
        clip("x", 0, "NA", path="common_voice_ca_na.mp3"),
        clip("x", 0, "una\u2028línia", path="common_voice_ca_line.mp3"),
        clip("x", 0, "   ", path="common_voice_ca_silent.mp3"),
        clip("x", 0, "\u200b", path="common_voice_ca_width.mp3"),
        clip("x", 0, "...", path="common_voice_ca_dots.mp3"),
        clip("x", 0, path="common_voice_ca_gone.mp3"),
        clip("x", 0, path="common_voice_ca_zero.mp3"),
        clip("x", 0, path="common_voice_ca_cut.mp3"),
        clip("x", 0, path="common_voice_ca_text.mp3"),
        clip("x", 0, path="common_voice_ca_31s.mp3"),
        clip("x", 0, "paraula " * 200, path="common_voice_ca_label.mp3"),
        clip("x", 0, segment="a\tb", path="common_voice_ca_tab.mp3"),
        clip("x", 0, up_votes="many", path="common_voice_ca_votes.mp3"),
        clip("x", 0, path="../../../etc/passwd"),
        clip("x", 0, path="common_voice_ca_link.mp3"),
    ]
    release(folder, three_tables(2) | {"train.tsv": rows})
    clips = folder / "clips"
    (clips / "common_voice_ca_gone.mp3").unlink()
    (clips / "common_voice_ca_zero.mp3").write_bytes(b"")
    whole = encoded(10.0, 1)
    (clips / "common_voice_ca_cut.mp3").write_bytes(whole[: len(whole) // 2])
    (clips / "common_voice_ca_text.mp3").write_bytes(b"<html>not found</html>" * 9)
    (clips / "common_voice_ca_31s.mp3").write_bytes(encoded(31.0, 2))
    outside.write_bytes(encoded(1.0, 3))
    (clips / "common_voice_ca_link.mp3").unlink()
    (clips / "common_voice_ca_link.mp3").symlink_to(outside)
    return folder


def tarball(path: Path, folder: Path, prefix: str, *extra: tarfile.TarInfo) -> Path:
    """A .tar.gz of a folder under `prefix`, then members with nothing in them."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, prefix)
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


_FLEURS_TYPES = {
    "id": pa.int32(),
    "num_samples": pa.int32(),
    "path": pa.string(),
    "audio": pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    "transcription": pa.string(),
    "raw_transcription": pa.string(),
    "gender": pa.int64(),
    "lang_id": pa.int64(),
    "language": pa.string(),
    "lang_group_id": pa.int64(),
}
_CLASSES = {"names": ["male", "female", "other"], "_type": "ClassLabel"}


def sentence(number: int, split: str = "test", **others: object) -> dict[str, object]:
    """A good row of FLEURS: float WAV, and each sentence read by two speakers."""
    seconds = 1.0 + number / 10
    data = encoded(seconds, sum(map(ord, split)) + number, "WAV", "FLOAT")
    name = f"{split}{number:04d}.wav"
    return {
        "id": number // 2,
        "num_samples": int(seconds * RATE),
        "path": f"/build/{name}",
        "audio": {"bytes": data, "path": name},
        "transcription": f"frase {number // 2} de fleurs {split}",
        "raw_transcription": f"Frase {number // 2}, de FLEURS {split}.",
        "gender": number % 2,
        "lang_id": 10,
        "language": "Catalan",
        "lang_group_id": 0,
    } | others


def parquet(path: Path, rows: list[dict], without: str | None = None) -> Path:
    """A parquet file as `datasets` writes it: its features stand in the schema's metadata."""
    types = {name: kind for name, kind in _FLEURS_TYPES.items() if name != without}
    plain = {"int32": "int32", "int64": "int64", "string": "string"}
    features = {
        name: {"dtype": plain[str(kind)], "_type": "Value"}
        for name, kind in types.items()
        if str(kind) in plain
    }
    features |= {"gender": _CLASSES, "audio": {"sampling_rate": RATE, "_type": "Audio"}}
    features = {name: features[name] for name in types}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(list(types.items()), metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path
