"""What a batch shows while it runs, and the table of what came of it.

One line for each task that ends, and while one trains, one for each of its epochs; on a terminal
also what runs at the moment, below them.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TextIO

from distilwhisper_lib.batch.task import Outcome, Task
from distilwhisper_lib.batch.tasks import methods_of
from distilwhisper_lib.config.settings import METHODS as ORDER
from distilwhisper_lib.config.settings import PROGRESS

SHOWN = 16  # running tasks that the live table names
WIDEST = 20  # characters of a heading
SOON = 90  # seconds that need no word


class Progress:
    """Lines such as "[ 3/12] done     05_js_distillation-ca-s77  34.2 s"."""

    def __init__(self, tasks: Sequence[Task], out: TextIO | None = None) -> None:
        self.tasks, self.out = tasks, out or sys.stdout
        self.counts: Counter[str] = Counter()
        self.began = time.monotonic()
        self.starts: dict[str, float] = {}
        self.epochs: dict[str, str] = {}  # what was last told of a training
        self._footer = 0  # lines of the live table on the screen
        self._lock = threading.Lock()  # a cluster's threads have something to say, too
        self.is_live = self.out.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, line: str) -> None:
        """A line that stays."""
        with self._lock:
            self._wipe()
            print(line, file=self.out, flush=True)

    def started(self, task: Task) -> None:
        self.starts[task.name] = time.monotonic()

    def taken(self, task: Task) -> None:
        self.say(f"waiting for {task.name}: another process is at it")

    def ended(self, outcome: Outcome) -> None:
        self.counts[outcome.status] += 1
        total, width = len(self.tasks), len(str(len(self.tasks)))
        line = f"[{self.counts.total():>{width}}/{total}] {outcome.status:<8} {outcome.name}"
        if outcome.status in ("done", "failed"):
            line += f"  {outcome.seconds:.1f} s"
        if outcome.status == "done" and (left := self._left(outcome.name)):
            line += f"  {left}"
        if outcome.status == "failed":
            where = f"; see {_relative(outcome.output)}" if outcome.output else ""
            line += f"  {outcome.error.rstrip('.')}{where}"
        elif outcome.error:
            line += f"  ({outcome.error})"
        elif outcome.status == "skipped":
            line += "  (its record exists; --force runs it again)"
        self.say(line)

    def _left(self, name: str) -> str:
        """What a task leaves to look at: the page of its data, else its run's folder."""
        task = next(task for task in self.tasks if task.name == name)
        pages = [Path(file).with_suffix(".html") for file in task.files[-1:]]
        left = [*pages, *(Path(record).parent for record in task.records)] if task.notebook else []
        return next((_relative(str(place)) for place in left if place.exists()), "")

    def tick(self, running: Collection[Task], waiting: int) -> None:
        """Draw the live table again; without a terminal, a line for each epoch that began."""
        now, trained = time.monotonic(), {task.name: _trained(task) for task in running}
        if not self.is_live:
            for name, line in trained.items():
                # Not of what is over in a moment.
                epoch = line.partition(":")[0]
                if line and epoch != self.epochs.get(name) and now - self.starts[name] > SOON:
                    self.epochs[name] = epoch
                    self.say(f"{name}: {line}")
            return
        told = [f"{len(running)} running", f"{waiting} waiting"]
        told += [f"{number} {status}" for status, number in self.counts.items()]
        lines = [f"-- {_minutes(now - self.began)} min: {', '.join(told)}"]
        for task in list(running)[:SHOWN]:
            lines.append(
                f"   {_minutes(now - self.starts[task.name]):>6} min  {task.name}"
                f"  {trained[task.name]}".rstrip()
            )
        if len(running) > SHOWN:
            lines.append(f"   and {len(running) - SHOWN} more")
        columns = os.get_terminal_size(self.out.fileno()).columns
        with self._lock:
            self._wipe()
            self.out.write("".join(f"{line[: columns - 1]}\n" for line in lines))
            self.out.flush()
            self._footer = len(lines)

    def close(self, outcomes: Iterable[Outcome]) -> None:
        """The table of all cells, when there is more than one, and how many ended how."""
        if table := results_grid(self.tasks, {o.name: o for o in outcomes}):
            self.say(f"\n{table}\n")
        self.say(", ".join(f"{number} {status}" for status, number in sorted(self.counts.items())))
        if self.counts["interrupted"]:
            self.say("The same command goes on where it was interrupted.")

    def _wipe(self) -> None:
        if self._footer:
            self.out.write(f"\x1b[{self._footer}F\x1b[J")
            self._footer = 0


def results_grid(tasks: Sequence[Task], outcomes: dict[str, Outcome]) -> str:
    """Methods x languages, each cell its seeds with what there is of them; one block a study.

    "77" has a record; any other seed says why it has none. A study whose settings would make a
    wide column is told below the blocks. "" for fewer than two cells.
    """
    blocks: dict[str, dict[tuple[str, str], list[str]]] = {}
    for task in tasks:
        methods = methods_of(task)
        for method, record in zip(methods, task.records if methods else (), strict=True):
            cells = blocks.setdefault(_study(task), {})
            cell = cells.setdefault((method, task.parameters["language"]), [])
            status = outcomes[task.name].status
            has_record = Path(record).is_file() and status in ("done", "skipped")
            # A notebook of one's own making may carry a kit's name and leave no record.
            told = "no record" if status in ("done", "skipped") else status
            seed = str(task.parameters["seed"])
            cell.append(seed if has_record else f"{seed} {told.upper()}")
    if sum(map(len, blocks.values())) < 2:
        return ""
    names = {title: title if len(title) <= WIDEST else f"study {number}"
             for number, title in enumerate(blocks, 1)}  # fmt: skip
    parts = [_block(names[title], cells) for title, cells in blocks.items()]
    told = [f"{name}: {title}" for title, name in names.items() if name != title]
    return "\n\n".join([*parts, "\n".join(told)] if told else parts)


def _study(task: Task) -> str:
    overrides = task.parameters.get("overrides") or {}
    settings = ", ".join(f"{name}={value}" for name, value in overrides.items())
    return task.parameters["preset"] + (f" ({settings})" if settings else "")


def _block(title: str, cells: dict[tuple[str, str], list[str]]) -> str:
    languages = list(dict.fromkeys(language for _, language in cells))
    methods = sorted({method for method, _ in cells}, key=ORDER.index)
    rows = [[title, *languages]]
    for method in methods:
        found = [", ".join(cells.get((method, language), ["-"])) for language in languages]
        rows.append([method, *found])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table, two spaces between columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _trained(task: Task) -> str:
    """How far the training of a task is, as its run notes it; "" where none is."""
    for record in task.records:
        try:
            return (Path(record).parent / PROGRESS).read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
    return ""


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
