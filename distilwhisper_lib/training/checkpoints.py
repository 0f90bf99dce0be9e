"""A trainer's checkpoints: whole once they are sealed, and counted in steps, never by the clock.

The Trainer writes a checkpoint file by file and drops the older ones by their times on disk. Here
its last file is a seal with the SHA-256 of all others, only then are older ones dropped, and which
is newer is a matter of steps: a machine's clock may be wrong, and a drive's another one.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from distilwhisper_lib import ranks
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import flush_to_disk, sha256_file, write_atomic

SEAL, STATE = "sealed.json", "trainer_state.json"
WEIGHTS = "trained.safetensors"


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


def best_steps(history: Sequence[Mapping[str, Any]], number: int = 1) -> list[int]:
    """The steps of a trainer's best validations, the best first, of equal ones the earlier."""
    told = sorted((entry["eval_wer"], entry["step"]) for entry in history if "eval_wer" in entry)
    return [step for _, step in told[:number]]


def last_checkpoint(folder: Path, averaged: int = 1) -> str | None:
    """The newest checkpoint that can be gone on with: it is whole, and so are its best ones."""
    steps = {_step(path): path for path in folder.glob("checkpoint-*")}
    for step in sorted(steps, reverse=True):
        path = steps[step]
        if is_whole(path):
            said = json.loads((path / STATE).read_text(encoding="utf-8"))
            best = {*best_steps(said["log_history"], averaged)} - {step}
            if all(is_whole(checkpoint_path(folder, other)) for other in best):
                return str(path)
    return None


def keep_only(folder: Path, *kept: str | Path | None) -> None:
    """Drop every checkpoint of a folder but these."""
    names = {Path(path).name for path in kept if path is not None}
    for path in folder.glob("checkpoint-*"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def lighten(folder: Path) -> None:
    """Leave of a finished training's checkpoints what was trained, and what the trainer said."""
    for path in folder.glob("checkpoint-*"):
        for file in path.iterdir():
            if file.name not in (STATE, WEIGHTS):
                file.unlink()
        seal(path)


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def waited_enough(history: Sequence[Mapping[str, Any]], patience: int) -> bool:
    """Whether so many validations one after another were no better than the best one; 0: never."""
    told = [entry["eval_wer"] for entry in history if "eval_wer" in entry]
    return bool(patience and told) and len(told) - 1 - told.index(min(told)) >= patience


class Patience(TrainerCallback):
    """Ends a training early. It counts in what the trainer said, where transformers' own counts by
    itself, and from nothing after an interruption."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop |= waited_enough(state.log_history, self.patience)


MEND = 'lower learning_rate, or set precision to "fp32", and run again'


class Clock(TrainerCallback):
    """Training time over interruptions: noted with each checkpoint, gone on with after it."""

    def __init__(self, note: Path) -> None:
        self.note, self.begin = note, time.perf_counter()
        self.earlier = json.loads(note.read_text()) if note.exists() else 0.0  # interrupted

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.is_first():
            write_atomic(self.note, json.dumps(round(self.seconds(), 1)))

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.begin


class TimeLeft(TrainerCallback):
    """Says how far a training is: a line after each epoch, and in ``note`` for who waits outside.

    ``name``: of its stage, "" of the only one; ``after``: how many times its own steps come after
    it. Counts at the pace of this call, validations included; tests, which follow, are not in it.
    The first log, of a few steps and the start, foretells nothing.
    """

    def __init__(self, note: Path, name: str, after: float) -> None:
        self.note, self.name, self.after = note, name, after
        self.begin, self.first, self.logs = time.perf_counter(), 0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begin, self.first, self.logs = time.perf_counter(), state.global_step, 0

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.logs += 1
        if ranks.is_first() and self.logs > 1:
            write_atomic(self.note, self._line(state))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.is_first() and state.global_step > self.first:
            print(self._line(state), flush=True)

    def _line(self, state: Any) -> str:
        pace = (time.perf_counter() - self.begin) / (state.global_step - self.first)
        left = pace * (state.max_steps * (1 + self.after) - state.global_step)
        minutes = f"about {left / 60:.0f} minutes" if left >= 90 else "a minute or less"
        epoch = f"epoch {math.ceil(state.epoch)} of {math.ceil(state.num_train_epochs)}"
        return f"{self.name}{', ' if self.name else ''}{epoch}: {minutes} of training left"


class LossWatch(TrainerCallback):
    """Stops before an optimiser step in which a loss is no number, and names its clips.

    Gradients may overflow (in fp16 they do, and the scaler then skips the step); a loss may not.
    It is looked at once a step: the Trainer's own filter, which this replaces and which hides such
    losses, waits for the device in every micro-batch.
    """

    def __init__(self, checkpoints: Path) -> None:
        self.checkpoints = checkpoints
        self.seen: list[tuple[Tensor, Sequence[str]]] = []

    def saw(self, loss: Tensor, clips: Sequence[str]) -> None:
        self.seen.append((loss, clips))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seen, self.seen = self.seen, []
        losses, bad = torch.stack([loss for loss, _ in seen]), None
        if not losses.isfinite().all():
            bad = next((x.item(), clips) for x, clips in seen if not math.isfinite(x.item()))
        if (bad := ranks.found_by_any(bad)) is None:  # all processes stop, at the same step
            return
        value, clips = bad
        raise UserError(
            f"the loss of step {state.global_step + 1} is {value} on clips {', '.join(clips)}: "
            f"nothing was learnt from it, and {kept(self.checkpoints)}; look at these clips, "
            f"{MEND}"
        )


def kept(checkpoints: Path) -> str:
    """What there is to go on from, as part of a sentence."""
    last = last_checkpoint(checkpoints)
    return f"{Path(last).name} is kept" if last else "there is no checkpoint yet"


class LogAtEpochEnd(TrainerCallback):
    """Closes a log window where a checkpoint is written, so that a resumed run logs the same."""

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_log = True
        return control
