"""A run that may be killed, in a process of its own: see faults.py.

Everything that kills stands here and nothing of it in the library: functions that write, rename
and delete are wrapped, each call is a numbered point, and at the chosen one the process does half
of the work and sends itself a SIGKILL.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets  # noqa: F401  (here, so that the fork server has it)
import torch
from tqdm import tqdm
from transformers.utils import logging

from distilwhisper_lib.config.settings import resolve
from distilwhisper_lib.data.checklist import write_data_report
from distilwhisper_lib.data.splits import load_data
from distilwhisper_lib.evaluation import decoding as evaluation
from distilwhisper_lib.evaluation import record as runs
from distilwhisper_lib.losses import target_files
from distilwhisper_lib.training import loop as training
from distilwhisper_lib.training.trainer import DistilTrainer

LOG = "points.jsonl"
SHARD_BYTES = 2**12  # so that a few clips fill several
STAGES = ("data", "targets", "training", "evaluation", "record")
KINDS = ("half-written", "torn line", "before rename", "after rename", "half-deleted")


def attempt(
    folder: str, method: str, overrides: dict[str, Any], kill: dict[str, Any] | None
) -> None:
    """Do the whole run in ``folder``, or go on with it; die at the first point like ``kill``.

    Of a point's line in LOG (point, stage, kind, what) ``kill`` names what must be equal.
    """
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own outlives a killed process
    points = _Points(kill)
    points.watch()
    target_files.SHARD_BYTES = SHARD_BYTES
    config = resolve(method, "demo", "ca", 7, overrides)
    points.stage = "data"
    data = load_data(config)
    write_data_report(config, data)
    points.stage = "training"
    trained = training.train(config, data)
    points.stage = "evaluation"
    evaluations = runs.evaluate(trained, data)
    points.stage = "record"
    runs.record_run(trained, data, evaluations)
    sys.stdout.flush()


class _Points:
    """The points of an attempt, each noted in LOG before anything happens there."""

    def __init__(self, kill: dict[str, Any] | None) -> None:
        self.stage, self.number, self.kill = "data", 0, kill
        self.log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def reach(self, kind: str, what: str, harm: Callable[[], Any] = lambda: None) -> None:
        self.number += 1
        line = {"point": self.number, "stage": self.stage, "kind": kind, "what": what}
        self.note(**line)
        if self.kill and self.kill.items() <= line.items():
            harm()
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, **line: Any) -> None:
        os.write(self.log, (json.dumps(line) + "\n").encode())

    def watch(self) -> None:
        fsync, rmtree = os.fsync, shutil.rmtree
        build, step = training.stored_targets, DistilTrainer.training_step

        def half_written(handle: int) -> None:
            path = os.path.basename(os.readlink(f"/proc/self/fd/{handle}"))
            what = re.sub(r"^\.(.+)\.\w+\.tmp$", r"\1", path)  # of write_atomic
            half = os.fstat(handle).st_size // 2
            self.reach("half-written", what, lambda: os.ftruncate(handle, half))
            fsync(handle)

        def renaming(rename: Callable[..., None]) -> Callable[..., None]:
            def renamed(source: Any, target: Any, **options: Any) -> None:
                self.reach("before rename", os.path.basename(target))
                rename(source, target, **options)
                self.reach("after rename", os.path.basename(target))

            return renamed

        def half_deleted(folder: Any, *args: Any, **kwargs: Any) -> None:
            files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
            if files:
                half = files[: -(-len(files) // 2)]
                self.reach("half-deleted", Path(folder).name, lambda: [p.unlink() for p in half])
            rmtree(folder, *args, **kwargs)

        def building(*args: Any) -> Any:
            self.stage = "targets"
            found = build(*args)
            self.stage = "training"
            return found

        def stepping(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            self.note(step=trainer.state.global_step + 1)
            return step(trainer, *args, **kwargs)

        os.fsync, shutil.rmtree = half_written, half_deleted
        os.replace, os.rename = renaming(os.replace), renaming(os.rename)
        training.stored_targets, DistilTrainer.training_step = building, stepping
        evaluation._open_for_appending = self._appending(evaluation._open_for_appending)

    def _appending(self, opened: Callable[..., Any]) -> Callable[..., Any]:
        class Torn:
            def __init__(self, file: Any, reach: Callable[..., None]) -> None:
                self.file, self.reach, self.flush = file, reach, file.flush

            def write(self, line: str) -> None:
                half = line.encode()[: len(line) // 2]
                descriptor = self.file.fileno()
                what = os.path.basename(self.file.name)
                self.reach("torn line", what, lambda: os.write(descriptor, half))
                self.file.write(line)

        @contextmanager
        def appending(path: Path | None) -> Any:
            with opened(path) as file:
                yield file and Torn(file, self.reach)

        return appending
