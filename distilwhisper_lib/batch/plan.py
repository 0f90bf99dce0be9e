"""What a batch would do and what it would cost, before anything starts; costs are capacity.py's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from distilwhisper_lib.batch.progress import aligned
from distilwhisper_lib.batch.task import Task, claim
from distilwhisper_lib.batch.tasks import METHODS, configs_of
from distilwhisper_lib.capacity import estimate, estimate_targets, known_device
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.facts import DEVICES, Device


class Cost(NamedTuple):
    """Hours on the device, and bytes that stay; NaN where nobody knows."""

    hours: float
    bytes: float
    source: str


UNKNOWN = Cost(math.nan, math.nan, "")


def plan(tasks: Sequence[Task], device: str | None = None) -> str:
    """A table of the tasks in order: state, needs, hours, disk; then what is left to do in all.

    state: "done"; "begun", which goes on from a checkpoint; "running" in another process; "to do".
    ``device``: a name of facts.DEVICES, by default this machine's. Raises UserError for another.
    """
    where = device_here() if device is None else known_device(device)
    with contextlib.chdir(tasks[0].root):  # where records and corpora are looked for
        costs = _costs(tasks, where)
    rows = [["", "task", "needs", "hours", "GB", "by"]]
    left: list[Cost] = []
    gpu_hours = 0.0
    for task, cost in zip(tasks, costs, strict=True):
        state = _state(task)
        rows.append(
            [state, task.name, _order(task), _number(cost.hours, 3),
             _number(cost.bytes / 1e9, 3), cost.source]
        )  # fmt: skip
        if state != "done":
            left.append(cost)
            gpu_hours += cost.hours if task.gpu and not math.isnan(cost.hours) else 0.0
    known = [cost for cost in left if not math.isnan(cost.hours)]
    told = f"{len(left)} of {len(tasks)} tasks are left"
    if known:
        disk = sum(cost.bytes for cost in known if not math.isnan(cost.bytes))
        told += (
            f": {sum(cost.hours for cost in known):.2f} hours, of which {gpu_hours:.2f} with a GPU "
            f"where there is one, and {disk / 1e9:.2f} GB"
        )
    if unknown := len(left) - len(known):
        told += f"; nothing is known of {unknown}" + (" of them" if known else "")
    return f"{aligned(rows)}\n\n{told}."


def _order(task: Task) -> str:
    """What comes before a task."""
    after = ("all above",) if len(task.after) > 1 else task.after
    return ", ".join((*task.needs, *after))


def _state(task: Task) -> str:
    if task.is_finished:
        return "done"
    if any(path.exists() for path in task.locks):
        with claim(task) as free:
            if not free:
                return "running"
    begun = (Path(record).parent / "checkpoints" for record in task.records if task.notebook)
    return "begun" if any(any(f.glob("checkpoint-*")) for f in begun) else "to do"


def _costs(tasks: Sequence[Task], device: Device | None) -> list[Cost]:
    """Of each task; runs that several data notebooks share are the first one's."""
    found, seen = [], set()
    for task in tasks:
        mine = [c for c in configs_of(task) if not task.notebook or c.run_id not in seen]
        seen |= {config.run_id for config in mine} if task.records and task.notebook else set()
        found.append(_cost(task, mine, device))
    return found


def _cost(task: Task, configs: Sequence[RunConfig], device: Device | None) -> Cost:
    """What a task's runs take, by capacity.py; tables and the like take seconds."""
    if task.notebook and not METHODS.get(Path(task.notebook).stem):
        return UNKNOWN
    if device is None:
        return UNKNOWN
    guess = estimate if task.notebook else estimate_targets
    found = [guess(config, device) for config in configs]
    hours = [math.nan if one.hours is None else one.hours for one in found]
    sources = dict.fromkeys(part for one in found for part in one.source.split("; "))
    return Cost(sum(hours), sum(one.disk_bytes for one in found), "; ".join(sources))


def device_here() -> Device | None:
    """The kind of this machine's GPU, or of its CPU; None for a GPU that facts.py has not."""
    import torch  # late: most of a plan needs none

    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return next((d for d in DEVICES.values() if d.is_that_of({"device": name})), None)


def _number(value: float, digits: int) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}f}"
