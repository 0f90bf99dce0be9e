"""A trainer's checkpoints: whole once they are sealed, and counted in steps, never by the clock.

The Trainer writes a checkpoint file by file and drops the older ones by their times on disk. Here
its last file is a seal with the SHA-256 of all others, only then are older ones dropped, and which
is newer is a matter of steps: a machine's clock may be wrong, and a drive's another one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from distilwhisper_lib.io.files import flush_to_disk, sha256_file, write_atomic

SEAL, STATE = "sealed.json", "trainer_state.json"


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the Trainer keeps the checkpoint of a step."""
    return Path(folder) / f"checkpoint-{step}"


def seal(checkpoint: Path) -> None:
    """Say that a checkpoint is whole: all of it is on the disk, and this is its SHA-256."""
    files = sorted(p for p in checkpoint.iterdir() if p.is_file())
    for path in files:
        flush_to_disk(path)
    digests = {path.name: sha256_file(path) for path in files}
    write_atomic(checkpoint / SEAL, json.dumps(digests, indent=1))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed and still is what was sealed."""
    try:
        digests = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        return STATE in digests and all(
            sha256_file(checkpoint / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that can be gone on with: it is whole, and so is its best one."""
    steps = {_step(path): path for path in folder.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        path = steps[step]
        if is_whole(path):
            best = json.loads((path / STATE).read_text(encoding="utf-8"))["best_model_checkpoint"]
            if best is None or Path(best).name == path.name or is_whole(folder / Path(best).name):
                return str(path)
    return None


def keep_only(folder: Path, *kept: str | Path | None) -> None:
    """Drop every checkpoint of a folder but these."""
    names = {Path(path).name for path in kept if path is not None}
    for path in folder.glob("checkpoint-*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1
