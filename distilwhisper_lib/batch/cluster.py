"""A batch on a dask.distributed cluster: this machine's own, or any that already runs.

Dask carries the tasks to workers and tells which workers there are; what runs where, and what
becomes of a run whose worker is gone, is decided here. A worker gets one task at a time and runs
it in a process of its own (processes.py), so that neither a crash nor a leak takes the worker
with it. Workers that offer the resource GPU get tasks with ``GPU=1``, which the scheduler gives
to one task at a time even where several batches share it; where no worker offers it, as on
machines without a GPU, tasks go without. Whoever can reach a scheduler can run code on its
workers: keep it inside a trusted network, or use Dask's TLS.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distilwhisper_lib import PACKAGE
from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.notebooks import one_line
from distilwhisper_lib.batch.processes import STAGGER, STOP_TIMEOUT, THREADS, Processes
from distilwhisper_lib.batch.schedule import ClusterGone
from distilwhisper_lib.batch.task import Outcome, Task, seconds_since
from distilwhisper_lib.errors import UserError, reason
from distilwhisper_lib.results.provenance import memory_gib, package_versions, usable_cores

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


LOST = 3  # times that a run's worker may vanish before the run counts as failed
CONNECT = 15  # seconds for a scheduler to answer
FIRST_WORKER = 120  # seconds for the first worker to come
LOOK = 1.0  # seconds between two questions to the scheduler
MEMORY = 4  # GiB of a machine without a GPU for each of its workers


class Cluster:
    """Executes tasks on a Dask cluster; a context manager.

    ``address`` of a running scheduler, else a cluster of this machine: a worker for each GPU, or
    for each core as far as there are 4 GiB for each; ``jobs`` workers if given, and no more than
    ``tasks``. Raises UserError, before anything starts, when there is no such cluster or when
    its workers do not share this checkout and its code.
    """

    def __init__(
        self,
        root: Path,
        address: str | None,
        jobs: int | None = None,
        tasks: int = 1,
        say: Callable[[str], None] = print,
    ) -> None:
        if importlib.util.find_spec("distributed") is None:
            raise UserError(
                "a cluster needs dask.distributed, which is not installed: pip install "
                "'distilwhisper-lib[cluster]', or use --jobs"
            )
        for name in ("distributed", "distributed.client"):  # which has a level of its own
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.root, self.say, self.batch = root, say, uuid.uuid4().hex
        self._lock, self._turn = threading.RLock(), threading.Lock()
        self._next_start, self._deserted = 0.0, False
        self._stopped = threading.Event()
        self._known: tuple[float, dict[str, Any]] = (float("-inf"), {})
        self._busy: set[str] = set()
        self._trusted: set[str] = set()
        self._refused: set[str] = set()
        self._names: dict[str, str] = {}
        self._losses: Counter[str] = Counter()
        self._local = None if address else local_cluster(jobs, tasks)
        self.address = address or self._local.scheduler_address
        try:
            self._client = self._connect()
            self._wait_for_workers()
            self._check_workers(self._ask(), refuse=False)
        except BaseException:
            self.close()
            raise
        say(self._about())

    def _connect(self) -> Any:
        import distributed

        try:
            return distributed.Client(
                self._local or self.address, timeout=CONNECT, set_as_default=False
            )
        except (OSError, ValueError, TypeError) as error:  # a timeout is an OSError
            raise UserError(
                f"no scheduler answers at {self.address} ({reason(error)}): expected the address "
                "that `dask scheduler` prints, such as tcp://host:8786"
            ) from None

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for part in (getattr(self, "_client", None), self._local):
            with contextlib.suppress(Exception):  # whatever is left of it
                if part is not None:
                    part.close(timeout=2)

    # Workers ---------------------------------------------------------------------------------

    def slots(self) -> int:
        """How many tasks may run at once at the moment: one a worker."""
        count = len(self._workers())
        if not count and not self._deserted:
            self.say("no worker at the moment: waiting for one")
        self._deserted = not count
        return count

    def _workers(self) -> dict[str, Any]:
        """What the scheduler says of the workers that fit this batch, by address."""
        with self._lock:
            asked, known = self._known
            if time.monotonic() - asked > LOOK:
                known = self._ask()
                self._check_workers(known, refuse=True)  # those that came later
                self._known = time.monotonic(), known
            return {address: known[address] for address in known if address in self._trusted}

    def _ask(self) -> dict[str, Any]:
        # Not scheduler_info(), which answers from memory when the scheduler does not. Of a client
        # that closes meanwhile, scheduler is None.
        if self._client.status == "running":
            with contextlib.suppress(OSError, CancelledError, AttributeError):
                identity = self._client.sync(self._client.scheduler.identity, n_workers=-1)
                return dict(identity["workers"])
        raise self._gone()

    def _wait_for_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=FIRST_WORKER)
        except TimeoutError:
            raise UserError(
                f"the scheduler {self.address} has no workers: start some, such as `dask worker "
                f"{self.address} --nthreads 1`"
            ) from None

    def _check_workers(self, workers: dict[str, Any], refuse: bool) -> None:
        """Trust the workers that see this checkout and run its code.

        One that does not is a UserError, or, with ``refuse``, gets nothing to do.
        """
        new = [a for a in workers if a not in self._trusted and a not in self._refused]
        if not new:
            return
        note = self.root / "outputs" / f".{self.batch}"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        try:
            answers = self._client.run(about_worker, str(note), workers=new, on_error="return")
        except (OSError, CancelledError):
            raise self._gone() from None
        finally:
            note.unlink(missing_ok=True)
        mine = about_worker(None)
        for address in new:
            self._names[address] = str(workers[address]["name"])
            answer = answers.get(address)
            if refuse and (answer is None or isinstance(answer, OSError)):
                continue  # it comes or goes at this moment: asked again with the next look
            wrong = difference(answer, mine, self.root)
            if wrong is None:
                self._trusted.add(address)
                continue
            sentence = f"worker {self._names[address]} {wrong}"
            if not refuse:
                raise UserError(sentence)
            self._refused.add(address)
            self.say(f"not used: {sentence}")

    def _about(self) -> str:
        workers = self._workers()
        gpus = sum(_gpus(about) for about in workers.values())
        told = f"cluster {self.address}: workers {len(workers)}, GPUs {gpus:g}"
        if importlib.util.find_spec("bokeh") is None:
            return f"{told} (its dashboard needs bokeh)"
        return f"{told}, dashboard {self._client.dashboard_link}"

    def _gone(self) -> ClusterGone:
        return ClusterGone(
            f"the scheduler {self.address} is gone: start it again and give the same command, "
            "which skips what has a record and resumes the rest from its checkpoints"
        )

    # Tasks -----------------------------------------------------------------------------------

    def __call__(self, task: Task) -> Outcome:
        """Execute a task on a free worker, on another one if that is lost meanwhile."""
        began = time.monotonic()
        while self._losses[task.name] < LOST:
            with self._worker(task) as worker:
                if worker is None:
                    if self._client.status != "running":
                        raise self._gone()
                    return Outcome(task.name, "interrupted")
                outcome = self._execute(task, worker)
            if outcome is not None:
                return outcome
            self._lost(task, self._names[worker])
        why = f"its worker was lost {LOST} times, often for want of memory"
        return Outcome(task.name, "failed", seconds_since(began), why)

    @contextlib.contextmanager
    def _worker(self, task: Task) -> Iterator[str | None]:
        """A free worker, and its turn to start; None when the batch is stopped."""
        chosen = None
        while chosen is None and not self._stopped.is_set():
            workers = self._workers()
            with self._lock:
                free = {a: w for a, w in workers.items() if a not in self._busy}
                # Tasks that need no GPU leave those workers to others, if they can.
                free = dict(sorted(free.items(), key=lambda item: _gpus(item[1]) > 0))
                if task.gpu and any(_gpus(about) for about in workers.values()):
                    free = {a: w for a, w in free.items() if _gpus(w)}
                chosen = next(iter(free), None)
                self._busy |= {chosen} if chosen else set()
            if chosen is None:
                self._stopped.wait(LOOK)
        try:
            with self._turn:
                self._stopped.wait(max(0.0, self._next_start - time.monotonic()))
                self._next_start = time.monotonic() + STAGGER
            yield None if self._stopped.is_set() else chosen
        finally:
            with self._lock:
                self._busy.discard(chosen)

    def _execute(self, task: Task, worker: str) -> Outcome | None:
        """How the task ended on that worker; None when the worker is gone."""
        workers = self._workers()
        if worker not in workers:
            return None
        about = workers[worker]
        host = [other for other in workers.values() if other["host"] == about["host"]]
        future = self._client.submit(
            execute_here,
            self.batch,
            task.to_json(),
            len(host),
            os.environ.get("OMP_NUM_THREADS"),
            key=f"{task.name}-{uuid.uuid4().hex}",
            workers=[worker],
            resources={"GPU": 1} if task.gpu and _gpus(about) else None,
            pure=False,
        )
        while True:
            try:
                return Outcome(**future.result(timeout=LOOK))
            except TimeoutError:
                # Dask would wait for this very worker, which comes back with another address.
                if worker not in self._workers():
                    future.cancel()
                    return None
                if self._given_up():
                    future.cancel()
                    return Outcome(task.name, "interrupted")
            except CancelledError as error:
                lost = getattr(error, "reason", "") == "scheduler-connection-lost"
                if lost or self._client.status != "running":
                    raise self._gone() from None
                return None

    def _given_up(self) -> bool:
        """Whether a stopped task should have ended by now."""
        return self._stopped.is_set() and time.monotonic() > self._deadline

    def _lost(self, task: Task, worker: str) -> None:
        self._losses[task.name] += 1
        self.say(f"worker {worker} is lost, and with it {task.name}: once more")
        with contextlib.suppress(OSError):
            ledger.note("lost", [task], worker=worker)

    def stop(self) -> None:
        """Interrupt the batch's notebooks on every worker."""
        self._deadline = time.monotonic() + 2 * STOP_TIMEOUT
        self._stopped.set()
        if self._client.status != "running":
            return  # its workers end by themselves, and their notebooks with them
        with contextlib.suppress(Exception):
            self._client.run(stop_here, self.batch, on_error="ignore")


def _gpus(about: dict[str, Any]) -> float:
    return about.get("resources", {}).get("GPU", 0)


# This machine's own cluster -------------------------------------------------------------------


def local_cluster(jobs: int | None, tasks: int) -> Any:
    """Workers of one thread each, for this machine only: nobody else can reach them."""
    from distributed import Nanny, Scheduler, SpecCluster

    devices = visible_devices()
    count = jobs or len(devices) or _cpu_workers()
    if devices and count > len(devices):
        raise UserError(
            f"--jobs {count} on a machine of {len(devices)} GPUs: expected at most one job a GPU"
        )
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers: dict[int, Any] = {}
    for number in range(max(1, min(count, tasks))):
        # No limit: Dask would look at the worker's memory, not at that of its notebook.
        options: dict[str, Any] = here | {"nthreads": 1, "memory_limit": 0}
        options["silence_logs"] = logging.CRITICAL
        if devices:
            # Before Dask's worker starts, so that no library of it sees the other cards.
            options["env"] = {"CUDA_VISIBLE_DEVICES": devices[number]}
            options["resources"] = {"GPU": 1}
        workers[number] = {"cls": Nanny, "options": options}
    options = here | {"dashboard": importlib.util.find_spec("bokeh") is not None}
    with _deaf_to_interrupts():
        return SpecCluster(
            workers, {"cls": Scheduler, "options": options}, silence_logs=logging.CRITICAL
        )


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What starts in this block does not hear a terminal's Ctrl-C: the batch ends it in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cpu_workers() -> int:
    return max(1, int(min(usable_cores(), (memory_gib() or MEMORY) // MEMORY)))


def visible_devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named or [str(number) for number in range(torch.cuda.device_count())]
