"""What looks on while a run trains: its time, its losses, and when its log is written."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from distilwhisper_lib import ranks
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.training.checkpoints import last_checkpoint

MEND = 'lower learning_rate, or set precision to "fp32", and run again'


class Clock(TrainerCallback):
    """Training time over interruptions: noted with each checkpoint, gone on with after it."""

    def __init__(self, note: Path) -> None:
        self.note, self.earlier, self.begin = note, 0.0, time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step and self.note.exists():  # resumed
            self.earlier = json.loads(self.note.read_text())

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if ranks.is_first():
            write_atomic(self.note, json.dumps(round(self.seconds(), 1)))

    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.begin


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
