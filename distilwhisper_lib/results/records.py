"""The run record: one JSON file per run, checked on every write and every read.

Everything that is shown or published (tables, figures, the README's block) is made from records.
"""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import DOMAINS, METHODS, NORMALIZERS, Record, RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import (  # fmt: skip
    LANGUAGE,
    Maybe,
    Named,
    Optional,
    Where,
    at_least,
    between,
    check,
    read_json,
    shown,
)
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.io.leaks import mask_values

SCHEMA_VERSION = 1


_COUNT, _MEASURE = at_least(int, 0), at_least(float, 0)
_SOME = at_least(int, 1)
_NAME = Where(
    str,
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*").fullmatch,
    "letters, digits and '_.-' only, because it names a file",
)


def _rate(name: str) -> Where:
    counts = dict.fromkeys(("substitutions", "deletions", "insertions", "hits"), _COUNT)
    return Where(
        {name: _MEASURE, **counts},
        lambda found: found["hits"] + found["substitutions"] + found["deletions"] > 0,
        "hits, substitutions and deletions that add up to 1 or more",
    )


_SCORES = Named(
    NORMALIZERS,
    {"wer": _rate("wer"), "cer": _rate("cer"), "utterances": _SOME, "empty_references": _COUNT},
    "scored under",
    "run its notebook again (what was trained and decoded is read back from outputs/, only the "
    "scores are made anew), or update the kit",
)
_DATA = Maybe({
    "corpus": str, "clips": _COUNT, "hours": _MEASURE, "sha256": str,
    "by_ffmpeg": Optional({"clips": _SOME, "av": str}),  # decoded by it, of which PyAV
})  # fmt: skip
_MODEL = {"name": str, "sha256": Maybe(str), "commit": Optional(str)}  # of the hub's: commit
# mode: "hidden", "top_k" or "online"; of stored ones also bytes, sha256 (of the files' hashes),
# seconds of the build, and built: whether this run built them or found them.
_TARGETS = {
    "mode": str,
    "bytes": Optional(_COUNT),
    "seconds": Optional(_MEASURE),
    "built": Optional(bool),
    "sha256": Optional(str),
}
# Rows that were trained on where clips share a window or have timestamps: see data/packing.py.
_PACKING = {
    "windows": _SOME, "clips": _SOME, "fill": between(0, 1), "with_timestamps": _COUNT,
    "sha256": str,
}  # fmt: skip
_TRAINING = {
    "steps": _COUNT,
    "epochs": _MEASURE,
    "seconds": _MEASURE,
    "processes": Optional(_COUNT),
    "trainable_parameters": _COUNT,
    "artifact_bytes": Maybe(_COUNT),
    "peak_memory_bytes": Maybe(_COUNT),
    "best_step": Maybe(_COUNT),
    "weights_sha256": Maybe(str),
    "teacher_targets": Optional(_TARGETS),
    "packing": Optional(_PACKING),
    "log": [{"step": _COUNT}],
    "validation": [{"step": _COUNT, "wer": Maybe(_MEASURE), "cer": Maybe(_MEASURE)}],
}
_EVALUATION = {
    "domain": tuple(DOMAINS),
    "corpus": str,
    "language": LANGUAGE,
    "clips": _SOME,
    "audio_seconds": _MEASURE,
    "seconds": Maybe(_MEASURE),
    "rtf": Maybe(_MEASURE),
    "precision": Optional(str),
    "batch_size": Optional(_SOME),
    "capped": _COUNT,
    "hypotheses_sha256": str,
    "published_sha256": Optional(str),
    "scores": _SCORES,
    "gates": Maybe({"encoder": [between(0, 1)], "decoder": [between(0, 1)]}),
}
_FORGETTING = {
    "task": ("transcribe", "translate"),
    "language": LANGUAGE,
    "domain": tuple(DOMAINS),
    "corpus": str,
    "clips": _SOME,
    "part": _NAME,
    "published_sha256": str,
    "scores": Maybe(_SCORES),
}


def _setting(hint: Any) -> Any:
    """The kind of a setting by its declared type. A choice is text: other versions have others."""
    options = typing.get_args(hint) or (hint,)
    kind = options[0] if isinstance(options[0], type) else str
    return Maybe(kind) if type(None) in options else kind


_SETTINGS = {name: Optional(_setting(h)) for name, h in typing.get_type_hints(RunConfig).items()}
SCHEMA: dict[str, Any] = {
    "schema": int,
    "run_id": _NAME,
    "preset": str,
    "demo": bool,
    "config": _SETTINGS
    | {"method": METHODS, "language": LANGUAGE, "seed": int, "conventions": str}
    | {"train_size": Optional(Maybe(_SOME))},
    "provenance": {
        "commit": Maybe(str),
        "dirty": Maybe(bool),
        "created": str,
        "versions": {str: Maybe(str)},
        "hardware": {"device": str, "cpu": str, "cores": int, "memory_gib": Maybe(float)},
        "command": Maybe(str),
    },
    "models": {"student": _MODEL, "teacher": Maybe(_MODEL)},
    "data": {"train": _DATA, "validation": _DATA, "in_domain": _DATA, "out_of_domain": _DATA},
    "training": Maybe(_TRAINING),
    "evaluations": [_EVALUATION],
    "forgetting": Optional([_FORGETTING]),
}


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
    check(record, SCHEMA, source)


def record_text(record: Record) -> str:
    """The record as the JSON text that is committed: sorted, indented, one final line feed."""
    return json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_record(record: Record, folder: str | Path) -> Path:
    """Check ``record`` and write it to ``<folder>/runs/<run_id>.json``; returns that path.

    Without tokens and host paths: see io/leaks.py.
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
    record = read_json(path, f"{path}: no such record: run the notebook that writes it")
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
