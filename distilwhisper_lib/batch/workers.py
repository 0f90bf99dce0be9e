"""What runs on the workers of a Dask cluster: tasks in processes, and a look at where they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.batch.notebooks import one_line
from distilwhisper_lib.batch.processes import THREADS, Processes
from distilwhisper_lib.batch.task import Task
from distilwhisper_lib.results.provenance import package_versions, usable_cores

_HERE: dict[str, Processes] = {}  # batch -> its processes on this worker
_GUARD = threading.Lock()


def execute_here(batch: str, task: str, workers: int, threads: str | None) -> dict[str, Any]:
    """Execute a task in a process of its own on this worker; the Outcome as a dict.

    ``threads`` is the caller's OMP_NUM_THREADS; without it, the ``workers`` of this machine share
    its cores. (Dask itself sets the variable to 1 in each worker.)
    """
    job = Task.from_json(task)
    # A task that asked for no GPU must not touch the card of the one beside it.
    hidden = {} if job.gpu else {"CUDA_VISIBLE_DEVICES": ""}
    count = threads or str(max(1, usable_cores() // workers))
    return asdict(_processes(batch)(job, **hidden, **dict.fromkeys(THREADS, count)))


def stop_here(batch: str) -> None:
    """Interrupt what a batch runs on this worker, and what it would still start."""
    threading.Thread(target=_processes(batch).stop, daemon=True).start()


def _processes(batch: str) -> Processes:
    from distributed import get_worker

    with _GUARD:
        if batch not in _HERE:
            _HERE[batch] = Processes(worker=str(get_worker().name))
            _HERE[batch].environment.pop("MALLOC_TRIM_THRESHOLD_", None)  # Dask's, for its workers
        return _HERE[batch]


def about_worker(note: str | None) -> dict[str, Any]:
    """What must be alike here and there: the folder (can it see the note?) and the code."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode() + path.read_bytes())
    return {
        "shares": note is None or _appears(Path(note)),
        "code": digest.hexdigest(),
        "versions": package_versions(),
    }


def _appears(note: Path) -> bool:
    """Whether a file that was just made is there: network disks take a moment to tell."""
    for _ in range(10):
        with contextlib.suppress(OSError):
            if note.name in os.listdir(note.parent):
                return True
        time.sleep(0.5)
    return False


def difference(theirs: Any, mine: dict[str, Any], root: Path) -> str | None:
    """What is wrong with a worker, as the end of a sentence; None when nothing is."""
    if isinstance(theirs, ImportError):
        return (
            f"cannot import this package ({one_line(theirs)}): start it with the Python "
            f"environment of this checkout, in {root}"
        )
    if not isinstance(theirs, dict):
        return f"does not answer ({one_line(theirs) if theirs else 'it is gone'}): start it anew"
    if not theirs["shares"]:
        return f"does not see {root}: put the checkout into a folder that all machines share"
    if theirs["code"] != mine["code"]:
        return f"runs another version of this package: start it anew from {root}"
    for name, version in mine["versions"].items():
        if theirs["versions"].get(name) != version:
            found = theirs["versions"].get(name)
            return f"has {name} {found}, expected {version} as here: give it the same environment"
    return None
