"""The files of stored teacher targets, and how they are built: see targets.py for what they are."""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.hardware import DTYPES, best_device, precision_here
from distilwhisper_lib.io.files import parse_json, sha256_file, write_atomic
from distilwhisper_lib.losses.chunked import States, top_k
from distilwhisper_lib.losses.teacher import Teacher, TeacherSource
from distilwhisper_lib.speech.features import IGNORE, Collator, SpeechDataset, shared_with_workers

FORMAT = 1
INDEX, PROGRESS, HEAD = "index.json", "progress.json", "head.safetensors"
SHARD_BYTES = 64 * 2**20
TOP_K = 64


class Place(NamedTuple):
    """Where a clip's positions stand: rows ``start`` to ``stop`` of a shard."""

    clip: str
    shard: str
    start: int
    stop: int


def plan(counts: dict[str, int], width: int) -> list[Place]:
    """Clips one after another, ``width`` bytes a position, in shards of SHARD_BYTES at most."""
    places: list[Place] = []
    shard, start, room = 0, 0, SHARD_BYTES // width
    for clip, count in counts.items():
        if start and start + count > room:
            shard, start = shard + 1, 0
        places.append(Place(clip, f"shard-{shard:05}.safetensors", start, start + count))
        start += count
    return places


class _Files:
    """The finished files of a build, noted one by one so that a killed build can go on."""

    def __init__(self, folder: Path, identity: dict[str, Any], places: list[Place]) -> None:
        self.folder, self.places = folder, places
        plan_hash = hashlib.sha256(json.dumps(places).encode()).hexdigest()
        self.made_for = {"format": FORMAT, "identity": identity, "plan": plan_hash}
        self.entries = self._left_over()
        self._note()
        (folder / INDEX).unlink(missing_ok=True)
        for partial in folder.glob(".*.tmp"):
            partial.unlink()
        self.began = time.perf_counter()

    def _left_over(self) -> dict[str, dict[str, Any]]:
        """Whole files of an earlier build of the same targets, complete or not."""
        left: dict[str, dict[str, Any]] = {}
        for name in (INDEX, PROGRESS):
            try:
                note = parse_json((self.folder / name).read_text(encoding="utf-8"))
                if self.made_for.items() <= note.items():
                    entries = [e | {"seconds": float(e["seconds"])} for e in note["files"]]
                    left |= {e["file"]: e for e in entries if {"sha256", "bytes"} <= e.keys()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
                continue
        ours = {HEAD, *(place.shard for place in self.places)}
        return {
            name: entry
            for name, entry in left.items()
            if name in ours and self._is_whole(name, entry["sha256"])
        }

    def _is_whole(self, name: str, sha256: str) -> bool:
        path = self.folder / name
        return path.is_file() and sha256_file(path) == sha256

    def _note(self) -> None:
        note = self.made_for | {"files": list(self.entries.values())}
        write_atomic(self.folder / PROGRESS, json.dumps(note))

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        content = save({k: v.contiguous() for k, v in tensors.items()})
        write_atomic(self.folder / name, content)
        now = time.perf_counter()
        self.entries[name] = {
            "file": name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "bytes": len(content),
            "seconds": round(now - self.began, 2),
        }
        self.began = now
        self._note()

    def finish(self) -> None:
        index = self.made_for | {
            "seconds": round(sum(entry["seconds"] for entry in self.entries.values()), 1),
            "files": [self.entries[name] for name in sorted(self.entries)],
            "clips": self.places,
        }
        write_atomic(self.folder / INDEX, json.dumps(index))
        (self.folder / PROGRESS).unlink()


def build(
    folder: Path,
    identity: dict[str, Any],
    places: list[Place],
    table: pd.DataFrame,
    collator: Collator,
    config: RunConfig,
    source: TeacherSource,
) -> None:
    """Make the missing files, then the index. One shard is held in memory at a time."""
    files = _Files(folder, identity, places)
    shards: dict[str, list[int]] = {}  # name -> rows of the table
    for row, place in enumerate(places):
        shards.setdefault(place.shard, []).append(row)
    missing = {name: rows for name, rows in shards.items() if name not in files.entries}
    lacks_head = config.targets == "hidden" and HEAD not in files.entries
    if missing or lacks_head:
        teacher = source.load().to(best_device())
        if lacks_head:
            files.add(HEAD, {"head": _compact(teacher.head.cpu())})
        done = len(places) - sum(map(len, missing.values()))
        bar = tqdm(total=len(places), initial=done, desc="teacher targets", unit="clip")
        with bar, shared_with_workers(config.workers):
            answers = _answers(teacher, missing.values(), table, collator, config, bar)
            for name, rows in missing.items():
                clips = [next(answers) for _ in rows]
                files.add(name, {key: torch.cat([clip[key] for clip in clips]) for key in clips[0]})
        del teacher, answers
        gc.collect()
        torch.cuda.empty_cache()  # does nothing where CUDA was never used
    files.finish()


def _compact(head: Tensor) -> Tensor:
    """The head in float16 where that loses nothing: Whisper's weights were published in it."""
    half = head.half()
    return half if torch.equal(half.float(), head.float()) else head.float()


@torch.no_grad()
def _answers(
    teacher: Teacher,
    shards: Iterable[list[int]],
    table: pd.DataFrame,
    collator: Collator,
    config: RunConfig,
    bar: tqdm,
) -> Iterator[dict[str, Tensor]]:
    """Each clip's targets, in order. No batch reaches over the end of a shard: see the tests."""
    size = config.micro_batch
    batches = [rows[i : i + size] for rows in shards for i in range(0, len(rows), size)]
    loader = DataLoader(
        SpeechDataset(table),
        batch_sampler=batches,
        collate_fn=collator,
        num_workers=config.workers,
        generator=torch.Generator(),  # not the one that training draws from
    )
    device, dtype = best_device(), DTYPES[precision_here(config.precision)]
    for rows, batch in zip(batches, loader, strict=True):
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            said = teacher.targets(batch)
        for i, row in enumerate(rows):
            states = said.states[i, batch["labels"][i] != IGNORE].float()
            bar.update()
            yield stored(States(states, said.head), config, table["id"].iloc[row])


def stored(said: States, config: RunConfig, clip: str) -> dict[str, Tensor]:
    """One clip's targets as they are kept, on the CPU."""
    if config.targets == "top_k":
        best = top_k(said, TOP_K, config.temperature)
        floor = torch.finfo(torch.float16).min  # a probability of 0 stays one, and finite
        kept = {"log_probs": best.log_probs.clamp(min=floor).half(), "tokens": best.tokens.int()}
    else:
        kept = {"states": said.states.half()}
    if not all(torch.isfinite(tensor).all() for tensor in kept.values()):
        raise UserError(
            f"what the teacher says about clip {clip!r} does not fit into float16: set "
            'teacher_targets to "online"'
        )
    return {name: tensor.cpu() for name, tensor in kept.items()}
