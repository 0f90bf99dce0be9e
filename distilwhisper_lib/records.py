"""The run record: one JSON file per run, checked on every write and every read.

Everything that is shown or published (tables, figures, the README's block) is made from records.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .config import METHODS
from .errors import UserError, reason
from .files import parse_json, write_atomic
from .leaks import mask_values
from .schema import EachOf as _EachOf
from .schema import Maybe as _Maybe
from .schema import Optional as _Optional
from .schema import check_fields, shown

SCHEMA_VERSION = 1
DOMAINS = {"in_domain": "in domain", "out_of_domain": "out of domain"}
NORMALIZERS = ("marks", "whisper")

Record = dict[str, Any]


_ERRORS = {"substitutions": int, "deletions": int, "insertions": int, "hits": int}
_SCORES = {
    "wer": {"wer": float, **_ERRORS},
    "cer": {"cer": float, **_ERRORS},
    "utterances": int,
    "empty_references": int,
}
_DATA = _Maybe({"corpus": str, "clips": int, "hours": float, "sha256": str})
_MODEL = {"name": str, "sha256": _Maybe(str), "commit": _Optional(str)}  # of the hub's: commit
# mode: "hidden", "top_k" or "online"; of stored ones also bytes, seconds of the build, and built:
# whether this run built them or found them.
_TARGETS = {
    "mode": str,
    "bytes": _Optional(int),
    "seconds": _Optional(float),
    "built": _Optional(bool),
}
_TRAINING = {
    "steps": int,
    "epochs": float,
    "seconds": float,
    "trainable_parameters": int,
    "artifact_bytes": _Maybe(int),
    "peak_memory_bytes": _Maybe(int),
    "best_step": _Maybe(int),
    "weights_sha256": _Maybe(str),
    "teacher_targets": _Optional(_TARGETS),
    "log": [{"step": int}],
    "validation": [{"step": int, "wer": _Maybe(float), "cer": _Maybe(float)}],
}
_EVALUATION = {
    "domain": tuple(DOMAINS),
    "corpus": str,
    "language": str,
    "clips": int,
    "audio_seconds": float,
    "seconds": _Maybe(float),
    "rtf": _Maybe(float),
    "precision": _Optional(str),
    "batch_size": _Optional(int),
    "capped": int,
    "hypotheses_sha256": str,
    "published_sha256": _Optional(str),
    "scores": {name: _SCORES for name in NORMALIZERS},
    "gates": _Maybe({"encoder": [float], "decoder": [float]}),
}
_FORGETTING = {
    "task": ("transcribe", "translate"),
    "language": str,
    "domain": tuple(DOMAINS),
    "corpus": str,
    "clips": int,
    "part": str,
    "published_sha256": str,
    "scores": _Maybe({name: _SCORES for name in NORMALIZERS}),
}
SCHEMA: dict[str, Any] = {
    "schema": int,
    "run_id": str,
    "preset": str,
    "demo": bool,
    "config": {"method": METHODS, "language": str, "seed": int, "conventions": str},
    "provenance": {
        "commit": _Maybe(str),
        "dirty": _Maybe(bool),
        "created": str,
        "versions": _EachOf(_Maybe(str)),
        "hardware": {"device": str, "cpu": str, "cores": int, "memory_gib": _Maybe(float)},
        "command": _Maybe(str),
    },
    "models": {"student": _MODEL, "teacher": _Maybe(_MODEL)},
    "data": {"train": _DATA, "validation": _DATA, "in_domain": _DATA, "out_of_domain": _DATA},
    "training": _Maybe(_TRAINING),
    "evaluations": [_EVALUATION],
    "forgetting": _Optional([_FORGETTING]),
}

_REMEDY = "run the notebook again, or take the file from version control"
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def validate_record(record: Any, source: str | Path = "record") -> None:
    """Raise UserError naming ``source`` and the field when ``record`` is not a run record."""
    if not isinstance(record, dict):
        raise UserError(f"{source}: holds {shown(record)}, expected a run record (a JSON object)")
    version = record.get("schema")
    if isinstance(version, int) and not isinstance(version, bool) and version != SCHEMA_VERSION:
        age = "newer" if version > SCHEMA_VERSION else "older"
        raise UserError(
            f"{source}: field 'schema' is {version}, {age} than the {SCHEMA_VERSION} that this "
            f"version reads: {'update the kit' if age == 'newer' else 'run the notebook again'}"
        )
    check_fields(record, SCHEMA, source, _REMEDY)
    if not _RUN_ID.fullmatch(record["run_id"]):
        raise UserError(
            f"{source}: field 'run_id' is {record['run_id']!r}, expected letters, digits and "
            "'_.-' only, because it names the file: take it from RunConfig.run_id"
        )
    for place, heard in enumerate(record.get("forgetting", ())):
        if not _RUN_ID.fullmatch(heard["part"]):
            raise UserError(
                f"{source}: field 'forgetting[{place}].part' is {shown(heard['part'])}, expected "
                f"letters, digits and '_.-' only, because it names a file: {_REMEDY}"
            )


def record_text(record: Record) -> str:
    """The record as the JSON text that is committed: sorted, indented, one final line feed."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_record(record: Record, folder: str | Path) -> Path:
    """Check ``record`` and write it to ``<folder>/runs/<run_id>.json``; returns that path.

    Without tokens and host paths: see leaks.py.
    """
    name = record.get("run_id") if isinstance(record, dict) else None
    validate_record(record, f"record {name}" if name else "record")
    try:
        text = record_text(mask_values(record, f"{name}.json"))
    except (TypeError, ValueError) as error:  # a tensor or NaN in one of the free-form parts
        raise UserError(
            f"record {name}: cannot be written as JSON ({error}): turn arrays into lists and "
            "leave out values that are not finite"
        ) from None
    return write_atomic(Path(folder) / "runs" / f"{name}.json", text)


def read_record(path: str | Path) -> Record:
    """Read and check one record; UserError names the file and what is wrong with it."""
    path = Path(path)
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such record: run the notebook that writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}: line {error.lineno} is not JSON ({error.msg}): {_REMEDY}"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({reason(error)}): {_REMEDY}") from None
    validate_record(record, path)
    return record


def load_records(folder: str | Path) -> list[Record]:
    """The records of ``<folder>/runs``, sorted by file name; empty when there are none.

    "results" holds the full runs and "results/demo" the demo's: neither sees the other's, and
    UserError names a record that lies in the wrong one.
    """
    paths = sorted((Path(folder) / "runs").glob("*.json"))
    records = [read_record(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        if record["run_id"] != path.stem:
            raise UserError(
                f"{path}: field 'run_id' is {record['run_id']!r}, expected {path.stem!r} as the "
                "file is called: rename the file"
            )
        if record["demo"] is not records[0]["demo"]:
            raise UserError(
                f"{path}: field 'demo' is {record['demo']} but {records[0]['demo']} in "
                f"{paths[0].name}: demo records belong into results/demo/runs, full ones into "
                "results/runs"
            )
    return records
