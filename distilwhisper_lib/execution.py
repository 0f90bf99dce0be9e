"""Running one notebook with papermill, in this process or in one of its own.

python -m distilwhisper_lib.execution TASK.json OUTCOME.json    (what Processes starts)
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .files import write_atomic
from .leaks import mask, mask_notebook
from .notebooks import no_braces, one_line
from .provenance import usable_cores

START_TIMEOUT = 180  # seconds; importing torch on a busy machine is slow
STOP_TIMEOUT = 15  # seconds that an interrupted notebook has to shut its kernel down


@dataclass(frozen=True)
class Task:
    """One notebook with one set of parameters. Plain values only, so that it travels as JSON."""

    notebook: str
    output: str
    parameters: dict[str, Any]
    stage: int = 2
    records: tuple[str, ...] = ()  # finished when all of these files exist

    @property
    def name(self) -> str:
        return Path(self.output).stem


@dataclass(frozen=True)
class Outcome:
    """How a task ended: status "done", "skipped", "failed" or "interrupted"."""

    name: str
    status: str
    seconds: float = 0.0
    error: str = ""  # one line, "ename: evalue"
    output: str = ""  # the executed copy, the failed one included; empty when there is none


def execute_one(task: Task) -> Outcome:
    """Run one notebook in this process, with the kernel of this interpreter, in its own folder.

    The executed copy appears under ``task.output`` when it is complete; a failed one stays beside
    it as ``*.failed.ipynb``. Both, and the error's line, without tokens and host paths: see
    leaks.py. Returns an Outcome whatever the notebook does; only an interrupt is raised on, after
    the kernel is gone.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    output = Path(task.output)
    failed, partial = _failed(output), output.with_name(f".{output.stem}.partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
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
    except Exception as error:  # whatever a notebook, its kernel or the disk can raise
        kept = _keep(partial, failed)
        return Outcome(task.name, "failed", _since(began), _error_line(error), kept)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _keep(partial, output)
    failed.unlink(missing_ok=True)  # that failure is mended
    return Outcome(task.name, "done", _since(began), "", str(output))


def _keep(partial: Path, place: Path) -> str:
    """Give an executed notebook its name, masked; "" where there is none."""
    if not partial.is_file():
        return ""
    mask_notebook(partial)
    os.replace(partial, place)
    return str(place)


def _failed(output: Path) -> Path:
    return output.with_name(f"{output.stem}.failed.ipynb")


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


def _since(began: float) -> float:
    return round(time.monotonic() - began, 1)


class Processes:
    """Runs each task in a Python process of its own, so that no memory or crash is shared.

    Calling it with a Task is ``execute_one`` in such a process; ``stop`` ends all of them, kernels
    first. ``jobs`` processes share the cores: OMP_NUM_THREADS is set unless the caller set it.
    """

    def __init__(self, jobs: int = 1) -> None:
        package = str(Path(__file__).resolve().parents[1])
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    def __call__(self, task: Task) -> Outcome:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distilwhisper-batch-") as folder:
            asked, answered, log = (Path(folder) / n for n in ("task.json", "out.json", "log.txt"))
            asked.write_text(json.dumps(asdict(task)), encoding="utf-8")
            status = self._wait([str(asked), str(answered)], log)
            outcome = _answer(answered) or Outcome(
                task.name, "failed", _since(began), _crash_line(status, log), _keep_partial(task)
            )
        if self.stopped.is_set() and outcome.status == "failed":
            # It failed because it was interrupted; the next start resumes from what it trained.
            if outcome.output:
                Path(outcome.output).unlink(missing_ok=True)
            return Outcome(task.name, "interrupted", outcome.seconds)
        return outcome

    def _wait(self, arguments: list[str], log: Path) -> int:
        with log.open("wb") as file:
            with self._lock:
                if self.stopped.is_set():
                    return 130
                process = subprocess.Popen(
                    [sys.executable, "-m", "distilwhisper_lib.execution", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self.environment,
                    start_new_session=True,  # a Ctrl-C reaches it once, through stop()
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """Interrupt every running notebook; kill what is still there after STOP_TIMEOUT."""
        with self._lock:
            self.stopped.set()
            running = list(self._running)
        for process in running:
            if os.name == "nt":
                process.terminate()
            else:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its kernel notices and ends by itself


def _answer(path: Path) -> Outcome | None:
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _crash_line(status: int, log: Path) -> str:
    """Why a process ended without an answer, from its exit status and the last line it wrote."""
    ended = f"signal {-status}" if status < 0 else f"exit status {status}"
    if status == -9:
        ended += ", often for want of memory"
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
    return mask(one_line(": ".join([f"the notebook's process ended ({ended})", *last])))


def _keep_partial(task: Task) -> str:
    output = Path(task.output)
    return _keep(output.with_name(f".{output.stem}.partial.ipynb"), _failed(output))


def _execute_file(asked: str, answered: str) -> int:
    """The inside of one process of Processes: run the task in ``asked``, answer with JSON."""
    task = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        outcome = execute_one(Task(**task | {"records": tuple(task["records"])}))
    except KeyboardInterrupt:
        return 130
    write_atomic(answered, json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(_execute_file(*sys.argv[1:]))
