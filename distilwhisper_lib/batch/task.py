"""What a batch consists of, and running one piece of it in this process."""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distilwhisper_lib.batch.notebooks import no_braces, one_line
from distilwhisper_lib.io.files import parse_json, told
from distilwhisper_lib.io.leaks import mask, mask_notebook

START_TIMEOUT = 180  # seconds; importing torch on a busy machine is slow
PAUSES = (2.0, 8.0)  # seconds before a kernel that did not start is tried again, and again


@dataclass(frozen=True)
class Task:
    """A notebook with one set of parameters, or what several notebooks share (``notebook`` empty:
    the teacher targets of a language). Plain values only, so that it travels as JSON.
    """

    name: str
    root: str  # the checkout
    notebook: str
    parameters: dict[str, Any]
    records: tuple[str, ...] = ()  # of its runs; finished when all of these are whole
    files: tuple[str, ...] = ()  # and these, if it has records: what it publishes
    needs: tuple[str, ...] = ()  # names of tasks that must have gone well before
    after: tuple[str, ...] = ()  # names of tasks that must have ended before, well or not
    gpu: bool = True  # uses one, where there is one

    @property
    def output(self) -> Path:
        """Where the executed copy of the notebook goes."""
        return Path(self.root) / "outputs" / "notebooks" / f"{self.name}.ipynb"

    @property
    def run_ids(self) -> tuple[str, ...]:
        return tuple(Path(record).parent.name for record in self.records)

    @property
    def locks(self) -> list[Path]:
        """One for each run, so that batches that call it by other names meet there, too."""
        names = self.run_ids if self.notebook and self.records else (self.name,)
        return [Path(self.root) / "outputs" / "locks" / f"{name}.lock" for name in sorted(names)]

    @property
    def is_finished(self) -> bool:
        return bool(self.records) and all(map(_is_whole, (*self.records, *self.files)))

    @classmethod
    def from_json(cls, text: str) -> Task:
        lists = ("records", "files", "needs", "after")
        return cls(**{k: tuple(v) if k in lists else v for k, v in json.loads(text).items()})

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    status: "done", "skipped", "failed", "interrupted", "not run" (something it needs failed),
    "lost" (with its cluster), or, from execute_one, "taken": another process is at it.
    """

    name: str
    status: str
    seconds: float = 0.0
    error: str = ""  # one line, "ename: evalue", or why it was skipped or not run
    output: str = ""  # the executed copy, the failed one included; empty when there is none


def _is_whole(path: str) -> bool:
    """Whether a JSON file is there and complete: among results, people delete and merge."""
    try:
        return bool(parse_json(Path(path).read_bytes()))
    except (OSError, ValueError):
        return False


@contextmanager
def claim(task: Task) -> Iterator[bool]:
    """Hold the task's runs, in outputs/locks/: False when another process holds one of them.

    The locks die with their process. They are flock's (msvcrt's on Windows): on a network disk
    that is enough where the server has locks across machines, as NFS 4 does.
    """
    with ExitStack() as held:
        for path in task.locks:
            try:
                with told(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    lock = FileLock(path)
                    lock.acquire(timeout=0)
            except Timeout:
                yield False
                return
            held.callback(lock.release)
        yield True


def execute_one(task: Task, note: Callable[[str], None] = lambda event: None) -> Outcome:
    """Do a task in this process: a notebook with the kernel of this interpreter, in its folder.

    The executed copy appears under ``task.output`` when it is complete; a failed one stays beside
    it as ``*.failed.ipynb``. Both, and the error's line, without tokens and host paths: see
    io/leaks.py. ``note`` hears "started" and "retried". Returns an Outcome whatever the notebook
    does; only an interrupt is raised on, after the kernel is gone.
    """
    began = time.monotonic()
    try:
        with claim(task) as mine:
            if not mine:
                return Outcome(task.name, "taken")
            if task.is_finished:
                return Outcome(task.name, "skipped", error="another command has done it")
            note("started")
            if not task.notebook:
                _build_targets(task)
                return Outcome(task.name, "done", seconds_since(began))
            return _run_notebook(task, note, began)
    except Exception as error:  # whatever a disk or a teacher can raise
        return Outcome(task.name, "failed", seconds_since(began), _error_line(error))


def _build_targets(task: Task) -> None:
    from distilwhisper_lib.config.settings import (
        resolve,  # here, because a notebook needs no torch in this process
    )
    from distilwhisper_lib.data.splits import load_data
    from distilwhisper_lib.training.loop import build_targets

    os.chdir(task.root)
    config = resolve(**task.parameters)
    build_targets(config, load_data(config))


def _run_notebook(task: Task, note: Callable[[str], None], began: float) -> Outcome:
    output, failed, partial = task.output, failed_copy(task), partial_copy(task)
    output.parent.mkdir(parents=True, exist_ok=True)
    pauses = list(PAUSES)
    while True:
        try:
            _papermill(task, partial)
        except Exception as error:  # whatever a notebook, its kernel or the disk can raise
            if pauses and _never_started(error, partial):
                # Not all at once: what starts together fails together.
                time.sleep(pauses.pop(0) * random.uniform(0.5, 1.5))
                note("retried")
                continue
            return Outcome(
                task.name, "failed", seconds_since(began), _error_line(error), keep_partial(task)
            )
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _keep(partial, output)
        failed.unlink(missing_ok=True)  # that failure is mended
        return Outcome(task.name, "done", seconds_since(began), "", str(output))


def _papermill(task: Task, partial: Path) -> None:
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(
        no_braces(task.notebook),
        no_braces(partial),
        parameters=task.parameters,
        kernel_name="python3",
        kernel_manager_class=_own_kernel_manager(),
        progress_bar=False,
        start_timeout=START_TIMEOUT,
        cwd=str(Path(task.notebook).parent),
    )


def _never_started(error: Exception, partial: Path) -> bool:
    """Whether the kernel did not start: nothing of the notebook has run, so it may run again."""
    import nbformat
    from zmq import ZMQError

    if not isinstance(error, (RuntimeError, ZMQError)):  # no answer, or a port that was taken
        return False
    if not partial.is_file():
        return True
    cells = nbformat.read(partial, as_version=4).cells
    return not any(cell.metadata.get("papermill", {}).get("start_time") for cell in cells)


def failed_copy(task: Task) -> Path:
    return task.output.with_name(f"{task.name}.failed.ipynb")


def partial_copy(task: Task) -> Path:
    return task.output.with_name(f".{task.name}.partial.ipynb")


def keep_partial(task: Task) -> str:
    """Keep what there is of an executed notebook as its failed copy; "" when there is nothing."""
    return _keep(partial_copy(task), failed_copy(task))


def _keep(partial: Path, place: Path) -> str:
    """Give an executed notebook its name, masked; "" where there is none."""
    if not partial.is_file():
        return ""
    mask_notebook(partial)
    os.replace(partial, place)
    return str(place)


def _own_kernel_manager() -> type:
    """A kernel manager that knows one kernel only: ipykernel under this very interpreter.

    A kernelspec called "python3" in a user's home or in JUPYTER_PATH may start any other Python.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from traitlets import default

    class OwnKernelManager(AsyncKernelManager):
        @default("kernel_spec_manager")
        def _own_interpreter_only(self) -> KernelSpecManager:
            return KernelSpecManager(parent=self, kernel_dirs=[], ensure_native_kernel=True)

    return OwnKernelManager


def _error_line(error: Exception) -> str:
    """ "ename: evalue" of the cell that failed, else the exception itself, on one line."""
    if hasattr(error, "ename"):
        error = f"{error.ename}: {error.evalue}" if error.evalue else error.ename
    return mask(one_line(error))


def seconds_since(began: float) -> float:
    """How long ago ``time.monotonic()`` gave that."""
    return round(time.monotonic() - began, 1)
