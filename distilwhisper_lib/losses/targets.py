"""What the teacher says about a training set, computed once and read by every run that needs it.

Before distillation the teacher runs over the training set with the student's labels. What is kept
of each labelled position is its final decoder hidden state in float16 ("hidden"): logits are made
of it again in chunked.py, with the teacher's own head, so KL and JS at any temperature share
it. For small disks there is "top_k": the TOP_K likeliest tokens at the run's temperature and the
mass of all others, which is then taken to be spread evenly (386 bytes a position, against 2,560
with large-v2).

Measured against the teacher itself on the embedded pair (test_targets.py), as the relative
error of the divergence and of its gradient in all experts:

    hidden   at most 0.0005 % and 0.02 %, KL and JS, temperatures 1 and 2
    top_k    temperature 1: KL 0.1 % and 3 %, JS 0.9 % and 4 %
             temperature 2: KL 4 % and 63 %, JS 9 % and 47 %: only for temperature 1

``outputs/teacher_targets/<language>-<hash of the identity>/`` holds flat safetensors shards, the
teacher's head, and, written last, index.json: the identity (everything that decides the targets),
each file's SHA-256, and where each clip stands. Student, seed, loss, dropout and SpecAugment are
no part of the identity. Whatever is: another value is another folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PretrainedConfig

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.hardware import precision_here
from distilwhisper_lib.io.files import alone, parse_json, sha256_file, told
from distilwhisper_lib.losses.chunked import States, TopK
from distilwhisper_lib.losses.target_files import FORMAT, HEAD, INDEX, TOP_K, Place, build, plan
from distilwhisper_lib.losses.teacher import TeacherSource
from distilwhisper_lib.speech.features import IGNORE, Collator

FOLDER = Path("outputs/teacher_targets")


@dataclass(frozen=True)
class StoredTargets:
    """Verified targets on disk. Small, so that it travels to the workers that read audio."""

    folder: Path
    places: dict[str, Place]
    about: dict[str, Any]  # mode; of stored ones bytes, sha256, seconds of the build, and built

    def read(self, clip: str) -> dict[str, Tensor]:
        """One clip's targets by name, (N, ...) of its N labelled positions."""
        _, shard, start, stop = self.places[clip]
        try:
            with safe_open(self.folder / shard, framework="pt") as file:  # mapped, not read
                found = {name: file.get_slice(name)[start:stop] for name in file.keys()}
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _unsound(self.folder, f"cannot be read from {shard} ({reason(error)})") from None
        if not found or {len(tensor) for tensor in found.values()} != {stop - start}:
            raise _unsound(self.folder, f"are cut off: {shard} lacks positions of clip {clip!r}")
        return found

    def teacher(self) -> StoredTeacher:
        """What a trainer asks instead of a Teacher."""
        if self.about["mode"] == "top_k":
            return StoredTeacher(None)
        try:
            return StoredTeacher(load_file(self.folder / HEAD)["head"].float())
        except (SafetensorError, OSError, KeyError) as error:
            raise _unsound(self.folder, f"cannot be read from {HEAD} ({reason(error)})") from None


class StoredTeacher:
    """A Teacher whose answers stand in the batch; of its model only the head is held."""

    def __init__(self, head: Tensor | None) -> None:
        self.head = head

    def to(self, device: torch.device | str) -> StoredTeacher:
        self.head = None if self.head is None else self.head.to(device)
        return self

    def targets(self, batch: dict[str, Tensor]) -> States | TopK:
        """As Teacher.targets(), of a Collator's batch of rows with targets."""
        if self.head is None:
            return TopK(batch["teacher_log_probs"], batch["teacher_tokens"])
        return States(batch["teacher_states"], self.head)


def stored_targets(
    config: RunConfig,
    table: pd.DataFrame,
    data_hash: str,
    collator: Collator,
    source: TeacherSource,
) -> StoredTargets:
    """The targets of a training table, built when they are not there yet.

    ``data_hash`` is the table's corpora.corpus_hash; the source's teacher is loaded only to build.
    An interrupted build goes on; of several processes that want the same targets one builds and
    the others wait. Raises UserError when what is there is damaged, unless the run asks to
    rebuild (which makes the damaged files anew), and when the disk is too small.
    """
    counts, labels_hash = _labels_of(table, collator)
    identity = _identity(config, labels_hash, data_hash, collator, source)
    digest = _digest(json.dumps([FORMAT, identity], sort_keys=True))
    folder = FOLDER / f"{config.language}-{digest[:12]}"
    width = TOP_K * 6 + 2 if config.targets == "top_k" else source.config.d_model * 2  # bytes
    places = plan(counts, width)
    found = _found(folder, identity, places, config.rebuild_teacher_targets)
    if found is None:
        remedy = 'set teacher_targets to "online"'
        with told(folder, remedy), alone(folder, "building the teacher targets"):
            found = _found(folder, identity, places, config.rebuild_teacher_targets)
            if found is None:  # else another process has built them since
                _check_room(folder, places, width, source)
                build(folder, identity, places, table, collator, config, source)
                found = _verified(folder, identity, places, built=True)
    return found


# Identity ------------------------------------------------------------------------------------


def _labels_of(table: pd.DataFrame, collator: Collator) -> tuple[dict[str, int], str]:
    """How many labelled positions each clip has, and the hash of all decoder inputs and labels."""
    counts, digest = {}, hashlib.sha256()
    names = [name for name in ("id", "text", "language", "spans") if name in table]
    for row in table[names].to_dict("records"):
        inputs, labels = collator.label_tokens(row)
        counts[row["id"]] = sum(label != IGNORE for label in labels)
        digest.update(json.dumps([row["id"], inputs, labels]).encode() + b"\n")
    return counts, digest.hexdigest()


def _identity(
    config: RunConfig,
    labels_hash: str,
    data_hash: str,
    collator: Collator,
    source: TeacherSource,
) -> dict[str, Any]:
    """Everything that decides the targets, as JSON has it."""
    compact = {"k": TOP_K, "temperature": config.temperature}
    heard = collator.extractor if source.extractor is None else source.extractor
    named = {} if source.tokens is None else {"tokens": _digest(json.dumps(source.tokens))}
    return (
        {
            "mode": config.targets,
            "teacher": source.about["name"],
            "teacher_revision": config.teacher_revision,
            "teacher_weights": source.about["sha256"],
            "teacher_config": _digest(json.dumps(_architecture(source.config), sort_keys=True)),
            "data": data_hash,
            "labels": labels_hash,
            "tokenizer": _digest(json.dumps(sorted(collator.tokenizer.get_vocab().items()))),
            "extractor": _digest(json.dumps(heard.to_dict(), sort_keys=True, default=str)),
            "precision": precision_here(config.precision),
            "dtype": "float16",
        }
        | named
        | (compact if config.targets == "top_k" else {})
    )


def _architecture(config: PretrainedConfig) -> dict[str, Any]:
    """A configuration without what only tells where it came from."""
    told = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
    return {k: v for k, v in json.loads(config.to_json_string()).items() if k not in told}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# What is there already -----------------------------------------------------------------------


def _found(
    folder: Path, identity: dict[str, Any], places: list[Place], rebuild: bool
) -> StoredTargets | None:
    """Complete and sound targets; None where there are none, or none that may stay."""
    if not (folder / INDEX).exists():
        return None
    try:
        return _verified(folder, identity, places, built=False)
    except UserError:
        if rebuild:
            return None
        raise


def _verified(
    folder: Path, identity: dict[str, Any], places: list[Place], built: bool
) -> StoredTargets:
    """Compare a folder with what it must be, byte by byte; UserError at the first difference."""
    try:
        index = parse_json((folder / INDEX).read_text(encoding="utf-8"))
        version, files, clips = index["format"], index["files"], index["clips"]
        theirs, seconds = dict(index["identity"]), float(index["seconds"])
        sizes = {file["file"]: (file["bytes"], file["sha256"]) for file in files}
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise _unsound(folder, f"have an unreadable {INDEX} ({reason(error)})") from None
    if version != FORMAT:
        raise _unsound(folder, f"have format {version!r}, expected {FORMAT}")
    for name, mine in identity.items():
        if (other := theirs.get(name)) != mine:
            raise _unsound(folder, f"were made for {name} {other!r}, this run has {mine!r}")
    expected = {place.shard for place in places}
    expected |= {HEAD} if identity["mode"] == "hidden" else set()
    if clips != [list(place) for place in places] or sizes.keys() != expected:
        raise _unsound(folder, f"list other clips or files in {INDEX} than this run needs")
    for name, (size, sha256) in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise _unsound(folder, f"are cut off: {name} has {found} bytes, expected {size}")
        if sha256_file(path) != sha256:
            raise _unsound(folder, f"are damaged: {name} is not what was written (SHA-256)")
    about = {
        "mode": identity["mode"],
        "bytes": sum(size for size, _ in sizes.values()),
        "seconds": seconds,
        "built": built,
        "sha256": _hash_of({name: sha256 for name, (_, sha256) in sorted(sizes.items())}),
    }
    return StoredTargets(folder.absolute(), {place.clip: place for place in places}, about)


def _hash_of(files: dict[str, str]) -> str:
    """What tells two builds apart: the teacher on another machine, or with another number of
    threads, rounds otherwise, and what learns from it comes out otherwise too."""
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _unsound(folder: Path, what: str) -> UserError:
    return UserError(
        f"the teacher targets in {folder} {what}: remove that folder, or set "
        '{"rebuild_teacher_targets": true}, to have them built again'
    )


def _check_room(folder: Path, places: list[Place], width: int, source: TeacherSource) -> None:
    head = source.config.vocab_size * source.config.d_model * 4
    needed = width * sum(place.stop - place.start for place in places) + head
    free = shutil.disk_usage(folder.parent).free
    there = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if needed > free + there:
        raise UserError(
            f"the teacher targets need {needed / 1e9:.1f} GB in {folder.parent}, which has "
            f'{free / 1e9:.1f} GB left: make room, or set teacher_targets to "top_k" or "online"'
        )
