"""Executing tasks in the order of their needs, several at a time, each exactly once."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from distilwhisper_lib.batch import ledger
from distilwhisper_lib.batch.notebooks import one_line
from distilwhisper_lib.batch.progress import Progress
from distilwhisper_lib.batch.task import Outcome, Task, claim
from distilwhisper_lib.errors import UserError, reason

LOOK = 1.0  # seconds between two looks at the clock, the workers and the claims of others
_WELL = {"done", "skipped"}


class ClusterGone(UserError):
    """The cluster that executes a batch cannot be reached any more: nothing else can start."""


@dataclass(frozen=True)
class Summary:
    """The outcomes of a batch in the order of its tasks; ``trouble`` is what ended it early."""

    outcomes: tuple[Outcome, ...] = field(default=())
    trouble: str = ""

    @property
    def exit_code(self) -> int:
        """0 when all is well, 1 when something failed, 130 after an interrupt."""
        statuses = {outcome.status for outcome in self.outcomes}
        return 130 if "interrupted" in statuses else int(not statuses <= _WELL)


def run_tasks(
    tasks: Sequence[Task],
    *,
    force: bool,
    jobs: int | Callable[[], int],
    execute: Callable[[Task], Outcome],
    progress: Progress | None = None,
) -> Summary:
    """Execute ``tasks``, each when what it needs has gone well, ``jobs`` at a time.

    ``execute`` is called from threads, and its ``stop()``, if it has one, on an interrupt, which
    ends all of them. ``jobs`` may be a function: clusters grow and shrink. A task that another
    process is at is taken up when that one has ended, if there is still something to do.
    """
    return _Batch(tasks, force, jobs, execute, progress or Progress(tasks)).run()


class _Batch:
    def __init__(
        self,
        tasks: Sequence[Task],
        force: bool,
        jobs: int | Callable[[], int],
        execute: Callable[[Task], Outcome],
        progress: Progress,
    ) -> None:
        self.tasks, self.execute, self.progress = tasks, execute, progress
        self.jobs = jobs if callable(jobs) else lambda: jobs
        self.forget = {task.name for task in tasks} if force else set()
        self.forced = frozenset(self.forget)
        self.waiting = list(tasks)
        self.running: dict[Future, Task] = {}
        self.taken: set[str] = set()
        self.ended: dict[str, Outcome] = {}
        self.trouble = ""
        self.unwritten = False

    def run(self) -> Summary:
        with ThreadPoolExecutor(max_workers=max(1, len(self.tasks))) as self.pool:
            try:
                while self.waiting or self.running:
                    self._take_up()
                    self._collect()
                    self.progress.tick(self.running.values(), len(self.waiting))
            except ClusterGone as error:
                self.trouble = str(error)
                self._stop("lost")
            except KeyboardInterrupt:
                self._stop("interrupted")
        summary = Summary(tuple(self.ended[task.name] for task in self.tasks), self.trouble)
        self.progress.close(summary.outcomes)
        return summary

    def _take_up(self) -> None:
        """Start, skip or drop what is ready; again when a skipped task makes others ready."""
        count = -1
        while count != len(self.waiting):
            count, free = len(self.waiting), self.jobs() - len(self.running)
            for task in [task for task in self.waiting if self._is_ready(task)]:
                bad = [n for n in task.needs if self.ended[n].status not in _WELL]
                if bad:
                    self._end(task, Outcome(task.name, "not run", error=f"needs {bad[0]}"))
                elif self._has_others_result(task):
                    why = "another command has done it"
                    self._end(task, Outcome(task.name, "skipped", error=why))
                elif task.name not in self.forced and task.is_finished:
                    why = "" if task.notebook else "all of its runs are finished"
                    self._end(task, Outcome(task.name, "skipped", error=why))
                elif free > 0 and self._is_free(task) and self._forgotten(task):
                    free -= 1
                    self.waiting.remove(task)
                    self.taken.discard(task.name)
                    self._note("submitted", task)
                    self.progress.started(task)
                    self.running[self.pool.submit(self.execute, task)] = task

    def _is_ready(self, task: Task) -> bool:
        return all(name in self.ended for name in (*task.needs, *task.after))

    def _has_others_result(self, task: Task) -> bool:
        return task.name in self.taken - self.forget and task.is_finished

    def _is_free(self, task: Task) -> bool:
        """Whether a task that another process had is to be had now."""
        if task.name not in self.taken:
            return True
        with claim(task) as mine:
            return mine

    def _forgotten(self, task: Task) -> bool:
        """Drop what earlier runs worked out, once, where it must not be read back."""
        if task.name not in self.forget:
            return True
        with claim(task) as mine:
            if not mine:
                self._others(task)
                return False
            for record in task.records if task.notebook else ():
                shutil.rmtree(Path(record).parent, ignore_errors=True)
        self.forget.discard(task.name)
        return True

    def _collect(self) -> None:
        """Take in what has ended; wait a little if nothing has."""
        if not self.running:
            if self.waiting:
                time.sleep(LOOK)
            return
        for future in wait(self.running, timeout=LOOK, return_when=FIRST_COMPLETED).done:
            task = self.running[future]
            outcome = _outcome(future, task)
            del self.running[future]  # not before: with its cluster it is lost, not forgotten
            if outcome.status == "taken":
                self.waiting.append(task)
                self._others(task)
            else:
                self._end(task, outcome)

    def _others(self, task: Task) -> None:
        if task.name not in self.taken:
            self.taken.add(task.name)
            self.progress.taken(task)

    def _end(self, task: Task, outcome: Outcome) -> None:
        if task in self.waiting:
            self.waiting.remove(task)
        self.ended[task.name] = outcome
        self._note(outcome.status, task, seconds=outcome.seconds, error=outcome.error)
        self.progress.ended(outcome)

    def _stop(self, status: str) -> None:
        """Nothing starts any more; how those that run end, and those that never started."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        getattr(self.execute, "stop", lambda: None)()
        running = {task.name: future for future, task in self.running.items()}
        for task in self.tasks:
            if (future := running.get(task.name)) is not None and not future.cancelled():
                with contextlib.suppress(ClusterGone):
                    self._end(task, _outcome(future, task))
                    continue
            if task.name not in self.ended:
                began = task.name in running or status == "interrupted"
                outcome = Outcome(task.name, status if began else "not run")
                self._end(task, replace(outcome, error="" if began else "the cluster is gone"))

    def _note(self, event: str, task: Task, **more: object) -> None:
        try:
            ledger.note(event, [task], **more)
        except OSError as error:  # the runs go on, and say more of a broken disk themselves
            if not self.unwritten:
                self.progress.say(f"{ledger.LEDGER} cannot be written ({reason(error)})")
            self.unwritten = True


def _outcome(future: Future, task: Task) -> Outcome:
    try:
        return future.result()
    except ClusterGone:
        raise
    except Exception as error:  # the executor itself broke down: that run failed, others go on
        return Outcome(task.name, "failed", error=one_line(error))
