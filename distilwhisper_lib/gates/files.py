"""What the gates do when nobody forces them: recorded while transcribing, at no second pass."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distilwhisper_lib.config.settings import WITH_EXPERTS, Record, RunConfig, resolve
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.checked import (
    LANGUAGE,
    Maybe,
    Optional,
    Where,
    at_least,
    between,
    check,
    read_json,
)
from distilwhisper_lib.results.places import files_of

SCHEMA = 2

_SHARES = [between(0, 1)]
_INTERVAL = Maybe([[float]])
_DOMAIN = {
    "encoder": _SHARES,
    "decoder": _SHARES,
    "encoder_interval": Optional(_INTERVAL),
    "decoder_interval": Optional(_INTERVAL),
    "classes": Optional({str: {"share": _SHARES, "interval": _INTERVAL}}),
    "soft": Optional({"encoder": Maybe(_SHARES), "decoder": Maybe(_SHARES)}),
    "entropy": Optional({str: {"all": [float], "interval": _INTERVAL}}),
    "scores": Optional(Maybe({str: [[at_least(int, 0)]]})),
}
_EXAMPLE = {
    "id": str,
    "text": str,
    "seconds": at_least(float, 0),
    "tokens": [str],
    "token_gates": [[float]],
    "frame_gates": [[float]],
}
_RUN_ID = Where(
    str, re.compile(r"[a-z_-]+-s\d+-[0-9a-f]+").fullmatch, "<method>-<language>-s<seed>-<hash>"
)
# Of files of schema 1 what they are of is in their run id only.
_FILE = {
    "run_id": _RUN_ID,
    "method": Optional(str),
    "preset": Optional(str),
    "language": LANGUAGE,
    "seed": Optional(int),
    "settings": Optional({}),
    "gate_noise": Optional(Maybe(float)),
    "domains": {str: Maybe(_DOMAIN)},
    "example": Optional(Maybe(_EXAMPLE)),
}


def gate_path(config: RunConfig) -> Path:
    """Where a run's gate file lies."""
    return config.results_dir / "gates" / f"{config.run_id}.json"


def read_gates(path: Path) -> dict[str, Any]:
    """A gate file, of this format or of schema 1, which has the shares by layer alone.

    Raises UserError when it is missing, unreadable, of a newer format or not what it should be.
    """
    missing = f"no gate file {path}: run one of the notebooks 04 to 06 first"
    gates = read_json(path, missing, "run its notebook again")
    schema = gates.get("schema") if isinstance(gates, dict) else None
    if schema not in (1, SCHEMA):
        raise UserError(
            f"gate file {path} has schema {schema!r}, expected {SCHEMA} (or 1, of earlier "
            "versions): update the kit or run its notebook again"
        )
    check(gates, _FILE, f"gate file {path}", "run its notebook again")
    _check_lengths(gates, path)
    if schema == 1:  # what it is of was only in its name: <method>-<language>-s<seed>-<hash>
        parts = re.fullmatch(r"(\w+)-.*-s(\d{1,10})-\w+", gates["run_id"])
        if parts is None:
            raise UserError(f"gate file {path} has no run id but {gates['run_id']!r}: rename it")
        gates = {"method": parts[1], "seed": int(parts[2])} | gates
    return gates


def _check_lengths(gates: dict[str, Any], path: Path) -> None:
    """Raise UserError unless all that is by layer is of one length, and all that is by position."""
    layers: dict[str, int] = {}
    for domain in filter(None, gates["domains"].values()):
        for side in ("encoder", "decoder"):
            layers.setdefault(side, len(domain[side]))
            tables = [(domain[side], domain.get(f"{side}_interval"))]
            if side in domain.get("entropy", {}):
                entropy = domain["entropy"][side]
                tables.append((entropy["all"], entropy.get("interval")))
            for shares, interval in tables:
                even = interval is None or {len(pair) for pair in interval} <= {2}
                if not len(shares) == layers[side] == len(interval or shares) or not even:
                    raise _uneven(path, f"the {side}'s layers")
        for found in domain.get("classes", {}).values():
            interval = found.get("interval") or [(0, 0)] * len(found["share"])
            if len(found["share"]) != len(interval) or {len(p) for p in interval} - {2}:
                raise _uneven(path, "the layers of a class")
    if example := gates.get("example"):
        widths = {len(row) for row in example["token_gates"]}
        if widths != {len(example["tokens"])} or len(set(map(len, example["frame_gates"]))) != 1:
            raise _uneven(path, "the positions of the example")


def _uneven(path: Path, what: str) -> UserError:
    return UserError(f"gate file {path} is not even in {what}: run its notebook again")


def load_gates(
    results: str | Path, records: Sequence[Record] | None = None
) -> list[dict[str, Any]]:
    """The gate files of a results folder, by run id; with ``records``, theirs, where they lie.

    Raises UserError when there is none.
    """
    found = [read_gates(path) | place for path, place in files_of("gates", results, records)]
    if not found:
        raise UserError(f"no gate files in {Path(results) / 'gates'}: run notebooks 04 to 06 first")
    return found


def gates_of(
    found: Sequence[dict[str, Any]], preset: str, seed: int, overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Of these gate files, those of a notebook's parameters, whatever the language; all of them
    where there is none: other seeds and training sizes would stand beside as if they were other
    systems."""
    languages = {g["language"] for g in found if g.get("preset") == preset}
    runs = {
        resolve(method, preset, language, seed, overrides).run_id
        for method in WITH_EXPERTS
        for language in languages
    }
    return [g for g in found if g["run_id"] in runs] or list(found)
