"""What a run said, utterance by utterance, published beside its record.

``<results>/hypotheses/<run_id>-<part>.jsonl.gz``: JSON lines, compressed. The record holds the
SHA-256 of the uncompressed lines, which is the same with every compressor
(``zcat FILE | sha256sum``). So every number of a table can be made again from committed files.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import Record
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import check
from distilwhisper_lib.io.files import parse_json, write_atomic
from distilwhisper_lib.io.leaks import mask_values
from distilwhisper_lib.results.places import folder_of
from distilwhisper_lib.scoring.rates import UtteranceErrors, utterance_errors

# What is published of transcribe()'s rows; the gates have files of their own.
COLUMNS: dict[str, type] = {
    "id": str,
    "reference": str,
    "hypothesis": str,
    "language": str,
    "speaker": str,
    "seconds": float,
    "tokens": int,
    "capped": bool,
}
FIELD = "published_sha256"  # of an evaluation in a record
# gzip's, without a time and a name, of a file from Unix: Python 3.13 names no system, 3.11 its own.
_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\x02\x03"
_MOST_BYTES = 2**28  # uncompressed: some hundred times the largest test set of the paper

Row = dict[str, Any]


def hypotheses_path(folder: str | Path, run_id: str, part: str) -> Path:
    """Where a results folder keeps what run ``run_id`` said in ``part`` ("in_domain", ...)."""
    return Path(folder) / "hypotheses" / f"{run_id}-{part}.jsonl.gz"


def publish(rows: Iterable[Mapping[str, Any]], folder: str | Path, run_id: str, part: str) -> str:
    """Write the rows of transcribe() for all to read; returns the SHA-256 of the lines.

    Speakers become their speaker_digest(). Without tokens and host paths: see io/leaks.py.
    """
    path = hypotheses_path(folder, run_id, part)
    public = mask_values([_public(row) for row in rows], path)
    lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in public]
    content = "".join(lines).encode("utf-8")
    if not _holds(path, content):
        write_atomic(path, _HEADER + gzip.compress(content, mtime=0)[len(_HEADER) :])
    return hashlib.sha256(content).hexdigest()


def _holds(path: Path, content: bytes) -> bool:
    """Whether the file is there and says this: compressed by another zlib, it is other bytes."""
    try:
        return _uncompressed(path, "") == content
    except UserError:  # missing or damaged
        return False


def _public(row: Mapping[str, Any]) -> Row:
    public = {name: row[name] for name in COLUMNS}
    public["speaker"] = speaker_digest(row["speaker"])
    return public


def speaker_digest(name: str | None) -> str:
    """What stands for a speaker in published files: a block for statistics, and nobody's name."""
    return hashlib.sha256(name.encode("utf-8")).hexdigest()[:12] if name else ""


def read_published(
    folder: str | Path, record: Record, evaluation: Mapping[str, Any]
) -> list[Row] | None:
    """The published rows of one evaluation, checked; None when its record names none.

    Raises UserError when the file is missing, damaged or not the one that the record names.
    """
    expected = evaluation.get(FIELD)
    if expected is None:
        return None
    path = hypotheses_path(folder, record["run_id"], part_of(evaluation))
    content = _uncompressed(path, record["run_id"])
    if hashlib.sha256(content).hexdigest() != expected:
        raise UserError(
            f"{path}: is not the file that record {record['run_id']} names (its SHA-256 differs): "
            "take both from version control, or run the notebook again"
        )
    rows = [_row(line, path, number) for number, line in enumerate(content.splitlines(), start=1)]
    if not rows:
        raise UserError(f"{path}: holds no line, expected one a clip: run the notebook again")
    return rows


class Hypotheses:
    """What runs said: each file read once, each text aligned once.

    ``folder`` is where the files of a record lie that does not say where it was found.

    Rows stay in memory, about 1 KB an utterance: a page that shows everything reads everything.
    Callers must not change them.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._rows: dict[tuple[str, str, str | None], list[Row] | None] = {}
        self._errors: dict[tuple[str, ...], UtteranceErrors | None] = {}

    @classmethod
    def of(cls, folder: str | Path | Hypotheses) -> Hypotheses:
        """The folder's; what is already being read goes on being so."""
        return folder if isinstance(folder, Hypotheses) else cls(folder)

    def rows(self, record: Record, evaluation: Mapping[str, Any]) -> list[Row] | None:
        """`read_published` of one evaluation."""
        key = self._key(record, evaluation)
        if key not in self._rows:
            folder = folder_of(record, self.folder)
            self._rows[key] = read_published(folder, record, evaluation)
        return self._rows[key]

    def errors(
        self, record: Record, evaluation: Mapping[str, Any], normalizer: str, metric: str
    ) -> UtteranceErrors | None:
        """`scoring.utterance_errors` of one evaluation; None when its record names no rows."""
        key = (*self._key(record, evaluation), normalizer, metric)
        if key not in self._errors:
            rows = self.rows(record, evaluation)
            self._errors[key] = rows and utterance_errors(
                rows, evaluation["language"], normalizer, metric
            )
        return self._errors[key]

    @staticmethod
    def _key(record: Record, evaluation: Mapping[str, Any]) -> tuple[str, str, str | None]:
        return record["run_id"], part_of(evaluation), evaluation.get(FIELD)


def part_of(evaluation: Mapping[str, Any]) -> str:
    """How files name an evaluation: its domain, or the ``part`` it says."""
    return evaluation.get("part") or evaluation["domain"]


def _uncompressed(path: Path, run_id: str) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise UserError(
            f"{path}: is missing, expected the hypotheses that record {run_id} names: take the "
            "file from version control, or run the notebook again"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: cannot be uncompressed ({error}): take the file from version control, or "
            "run the notebook again"
        ) from None
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path}: holds more than {_MOST_BYTES >> 20} MiB, expected hypotheses")
    return content


def _row(line: bytes, path: Path, number: int) -> Row:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number} is not JSON ({error})") from None
    check(row, COLUMNS, f"{path}: line {number}", "run the notebook again")
    return row


def same_clips(first: Sequence[Row], second: Sequence[Row]) -> bool:
    """Whether two runs heard the same clips with the same references, in the same order."""
    keys = ("id", "reference", "speaker")
    return len(first) == len(second) and all(
        a[key] == b[key] for a, b in zip(first, second, strict=True) for key in keys
    )
