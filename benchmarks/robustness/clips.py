"""Corpora of as many short clips as one likes, in the layouts that the kit reads.

Every clip has bytes of its own, as real ones do: a number stands where no decoder looks.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import soundfile

RATE = 16_000
SECONDS = 1.0
RELEASE = "cv-corpus-13.0-2023-03-09"  # whose columns these are
VALIDATION = 100
_COLUMNS = (
    "client_id path sentence up_votes down_votes age gender accents variant locale segment".split()
)
_WORDS = "mira passa vola corre canta torna porta parla pensa riu neu llum pont casa camp".split()
_SHARD, _GROUP = 1000, 100  # rows of a parquet file and of a group in it, about as the hub's


def text(number: int, words: int) -> str:
    """A sentence that no other number has."""
    random = np.random.default_rng(number)
    return " ".join([*random.choice(_WORDS, words - 1), f"num{number}"])


def common_voice_archive(path: Path, clips: int, words: int) -> Path:
    """Mozilla's .tar.gz of Catalan: `clips` clips to train on, as many to test on."""
    folder = f"{RELEASE}/ca"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for table, count in (("train", clips), ("dev", VALIDATION), ("test", clips)):
            rows = [_row(table, number, words) for number in range(count)]
            lines = ["\t".join(_COLUMNS), *("\t".join(row.values()) for row in rows)]
            _add(archive, f"{folder}/{table}.tsv", "\n".join([*lines, ""]).encode())
        for table, count in (("train", clips), ("dev", VALIDATION), ("test", clips)):
            for number in range(count):
                _add(archive, f"{folder}/clips/{_name(table, number)}", _mp3(table, number))
    return path


def fleurs_parquet(folder: Path, clips: int, words: int) -> None:
    """A local copy of FLEURS: the parquet files of one language's test split."""
    folder.mkdir(parents=True)
    shards = -(-clips // _SHARD)
    for shard in range(shards):
        numbers = range(shard * _SHARD, min(clips, (shard + 1) * _SHARD))
        rows = pyarrow.Table.from_pylist([_sentence(n, words) for n in numbers], _schema())
        name = f"test-{shard:05}-of-{shards:05}.parquet"
        pyarrow.parquet.write_table(rows, folder / name, row_group_size=_GROUP)


def own_recordings(folder: Path, clips: int, words: int) -> None:
    """A folder with metadata.csv."""
    folder.mkdir(parents=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text", "language", "split", "speaker"])
        for number in range(clips):
            (folder / f"{number}.wav").write_bytes(_wav(number))
            table.writerow([f"{number}.wav", text(number, words), "ca", "train", f"v{number % 99}"])


def _name(table: str, number: int) -> str:
    return f"common_voice_ca_{table}{number:06}.mp3"


def _row(table: str, number: int, words: int) -> dict[str, str]:
    offset = {"train": 0, "dev": 10**6, "test": 2 * 10**6}[table]
    row = dict.fromkeys(_COLUMNS, "")
    return row | {
        "client_id": f"{offset + number % 997:0128x}",
        "path": _name(table, number),
        "sentence": text(offset + number, words),
        "up_votes": "2",
        "down_votes": "0",
        "locale": "ca",
    }


def _sentence(number: int, words: int) -> dict[str, object]:
    said, data = text(3 * 10**6 + number, words), _wav(number)
    return {
        "id": number // 2,
        "num_samples": int(SECONDS * RATE),
        "path": f"test{number:06}.wav",
        "audio": {"bytes": data, "path": f"test{number:06}.wav"},
        "transcription": said,
        "raw_transcription": said.capitalize() + ".",
    }


def _schema() -> pyarrow.Schema:
    """With the features that `datasets` leaves in a parquet file."""
    kinds = {"id": "int32", "num_samples": "int32", "path": "string"}
    kinds |= {"transcription": "string", "raw_transcription": "string"}
    types = [(name, getattr(pyarrow, kind)()) for name, kind in kinds.items()]
    types.insert(3, ("audio", pyarrow.struct([("bytes", pyarrow.binary()),
                                              ("path", pyarrow.string())])))  # fmt: skip
    features = {name: {"dtype": kind, "_type": "Value"} for name, kind in kinds.items()}
    features["audio"] = {"sampling_rate": RATE, "_type": "Audio"}
    features = {name: features[name] for name, _ in types}
    about = json.dumps({"info": {"features": features}})
    return pyarrow.schema(types, metadata={"huggingface": about})


def _recordings() -> Iterator[bytes]:
    samples = np.random.default_rng(0).normal(0, 0.1, int(SECONDS * RATE))
    for kind in ("MP3", "WAV"):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples, RATE, format=kind)
        yield buffer.getvalue()


_MP3, _WAV = _recordings()


def _mp3(table: str, number: int) -> bytes:
    """With an ID3 tag of 128 bytes at its end, which says who it is."""
    return _MP3 + b"TAG" + f"{table} {number}".encode().ljust(125, b"\0")


def _wav(number: int) -> bytes:
    """The last two samples are its number."""
    return _WAV[:-4] + number.to_bytes(4, "little")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
