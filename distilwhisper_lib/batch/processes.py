"""Each task in a Python process of its own, which ends with the process that started it.

python -m distilwhisper_lib.batch.processes TASK.json OUTCOME.json WORKER    (what Processes starts)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.notebooks import one_line
from distilwhisper_lib.batch.task import Outcome, Task, execute_one, keep_partial, seconds_since
from distilwhisper_lib.io.files import write_atomic
from distilwhisper_lib.io.leaks import mask
from distilwhisper_lib.results.provenance import usable_cores

STOP_TIMEOUT = 15  # seconds that an interrupted notebook has to shut its kernel down
STAGGER = 0.5  # seconds between two starts, so that kernels do not fight for ports and disk
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Processes:
    """Runs each task in a Python process of its own, so that no memory or crash is shared.

    Calling it with a Task is ``execute_one`` in such a process; ``stop`` ends all of them, kernels
    first, and so does the end of this process, however it comes. ``jobs`` processes share the
    cores: OMP_NUM_THREADS is set unless the caller set it. ``worker`` is what the ledger calls
    this process. Each task has Jupyter and IPython folders of its own, which go with it.
    """

    def __init__(self, jobs: int = 1, worker: str = "local") -> None:
        package = str(PACKAGE.resolve().parent)
        search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // jobs)))
        self.worker = worker
        self.stopped = threading.Event()
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._next_start = 0.0

    def __call__(self, task: Task, **environment: str) -> Outcome:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="distilwhisper-batch-") as name:
            folder = Path(name)
            asked, answered, log = (folder / n for n in ("task.json", "out.json", "log.txt"))
            asked.write_text(task.to_json(), encoding="utf-8")
            own = {"JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
            environment |= {variable: str(folder / place) for variable, place in own.items()}
            self._wait_for_turn()
            arguments = [str(asked), str(answered), self.worker]
            status = self._run(arguments, log, task.root, environment)
            outcome = _answer(answered) or Outcome(
                task.name,
                "failed",
                seconds_since(began),
                _crash_line(status, log),
                keep_partial(task),
            )
        if self.stopped.is_set() and outcome.status == "failed":
            # It failed because it was interrupted; the next start resumes from what it trained.
            if outcome.output:
                Path(outcome.output).unlink(missing_ok=True)
            return Outcome(task.name, "interrupted", outcome.seconds)
        return outcome

    def _wait_for_turn(self) -> None:
        with self._turn:
            self.stopped.wait(max(0.0, self._next_start - time.monotonic()))
            self._next_start = time.monotonic() + STAGGER

    def _run(self, arguments: list[str], log: Path, root: str, more: dict[str, str]) -> int:
        with log.open("wb") as file:
            with self._lock:
                if self.stopped.is_set():
                    return 130
                process = subprocess.Popen(
                    [sys.executable, "-m", "distilwhisper_lib.batch.processes", *arguments],
                    stdin=subprocess.PIPE,  # closed by the system when this process dies
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=self.environment | more,
                    cwd=root,
                    start_new_session=True,  # a Ctrl-C reaches it once, through stop()
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                process.stdin.close()
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


# The inside of one such process ---------------------------------------------------------------


_orphaned = threading.Event()


def _execute_file(asked: str, answered: str, worker: str) -> int:
    """Run the task in ``asked``, answer with JSON."""
    # A shell's background jobs ignore SIGINT, and so would whatever they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    task = Task.from_json(Path(asked).read_text(encoding="utf-8"))

    def note(event: str) -> None:
        try:
            if event == "started":
                ledger.note_start(task, worker)
            else:
                ledger.note(event, [task], worker=worker)
        except OSError as error:  # the run says more of a broken disk than the ledger can
            print(f"{ledger.LEDGER} cannot be written: {error}", flush=True)

    try:
        outcome = execute_one(task, note)
    except KeyboardInterrupt:
        if _orphaned.is_set():  # nobody else will remove what it left there
            shutil.rmtree(Path(asked).parent, ignore_errors=True)
        return 130
    write_atomic(answered, json.dumps(asdict(outcome)))
    return 0


def _end_with_parent() -> None:
    """Interrupt this process when the one that started it is gone; whatever it leaves resumes."""
    while os.read(0, 1):  # nothing is written there: it returns when the other end is closed
        pass
    _orphaned.set()
    if os.name != "nt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(STOP_TIMEOUT)
    os._exit(130)


if __name__ == "__main__":
    sys.exit(_execute_file(*sys.argv[1:]))
