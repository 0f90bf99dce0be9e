"""What happened to the runs of all batches, event by event: outputs/ledger.jsonl.

One JSON line an event, in the order in which they were written (clocks of several machines may
disagree): time (UTC), event, task, run_ids, and where they apply worker, seconds and error. Without
tokens and host paths, as all that is kept: see io/leaks.py.

    submitted    a batch handed the task to its executor
    started      a process has the task to itself and begins
    retried      its kernel did not start; one more attempt
    lost         it had started and nobody said how it ended: its process or machine died
    done, failed, skipped, interrupted, not run    how it ended for a batch
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from distilwhisper_lib.batch.task import Task
from distilwhisper_lib.io.leaks import mask_values

LEDGER = Path("outputs/ledger.jsonl")
_BEGUN = {"started", "retried"}


def note(event: str, tasks: Iterable[Task], **more: Any) -> None:
    """Append one line a task, flushed to the disk; safe for any number of writers.

    Raises OSError when the disk does not take it. A line that a crash tore is closed first.
    """
    tasks = list(tasks)
    if not tasks:
        return
    path = Path(tasks[0].root) / LEDGER
    told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
    kept = mask_values({name: value for name, value in more.items() if value}, LEDGER)
    lines = [
        json.dumps(told | {"task": task.name, "run_ids": list(task.run_ids)} | kept)
        for task in tasks
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Appending is not atomic on every network disk, so that writers take turns.
    with FileLock(f"{path}.lock"), path.open("ab+") as file:
        if file.tell() and _last_byte(file) != b"\n":
            file.write(b"\n")
        file.write("".join(f"{line}\n" for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())


def read(root: str | Path) -> list[dict[str, Any]]:
    """The events, oldest first; what a crash tore is left out."""
    try:
        lines = (Path(root) / LEDGER).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"event", "task"} <= event.keys():
            events.append(event)
    return events


def note_start(task: Task, worker: str) -> None:
    """Note that the task starts here, and that an earlier start was lost, if it has no end.

    For whoever holds the task's claim: then nobody else can be at it.
    """
    mine = [event for event in read(task.root) if event["task"] == task.name]
    last = next((e for e in reversed(mine) if e["event"] != "submitted"), None)
    if last and last["event"] in _BEGUN:
        note("lost", [task], worker=last.get("worker"))
    note("started", [task], worker=worker)


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    last = file.read(1)
    file.seek(0, os.SEEK_END)
    return last
