"""What a batch would do and what it would cost, before anything starts.

Costs are those of records that stand already, in results/ and results/demo/: runs of the same
preset and method with the same settings, whatever their language and seed.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .config import RunConfig
from .errors import UserError
from .execution import Task, claim
from .progress import aligned
from .records import Record, load_records
from .tasks import METHODS, configs_of

_RESULTS = ("results", "results/demo")
_NEVER_ALIKE = {"language", "seed"}


class Cost(NamedTuple):
    """Hours on the device that the figure is of, and bytes that stay; NaN where nobody knows."""

    hours: float
    bytes: float
    source: str


UNKNOWN = Cost(math.nan, math.nan, "")


def plan(tasks: Sequence[Task]) -> str:
    """A table of the tasks in order: state, needs, hours, disk; then what is left to do in all.

    state: "done"; "begun", which goes on from a checkpoint; "running" in another process; "to do".
    """
    records = [r for f in _RESULTS for r in load_records(Path(tasks[0].root) / f)]
    rows = [["", "task", "needs", "hours", "GB", "measured on"]]
    left: list[Cost] = []
    gpu_hours = 0.0
    for task in tasks:
        state, cost = _state(task), _cost(task, records)
        rows.append(
            [state, task.name, ", ".join(task.needs) or ("all above" if task.after else ""),
             _number(cost.hours, 3), _number(cost.bytes / 1e9, 3), cost.source]
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


def _state(task: Task) -> str:
    if task.is_finished:
        return "done"
    if any(path.exists() for path in task.locks):
        with claim(task) as free:
            if not free:
                return "running"
    begun = (Path(record).parent / "checkpoints" for record in task.records if task.notebook)
    return "begun" if any(any(f.glob("checkpoint-*")) for f in begun) else "to do"


def _cost(task: Task, records: Sequence[Record]) -> Cost:
    """What a task's runs took where they ran before; tables and the like take seconds."""
    if not task.notebook:
        return _of_targets(task, records)
    if not METHODS.get(Path(task.notebook).stem):
        return UNKNOWN
    return _sum([_of_run(config, records) for config in configs_of(task)])


def _of_run(config: RunConfig, records: Sequence[Record]) -> Cost:
    alike = _alike(config, records)
    if not alike:
        return _estimated(config)
    seconds, sizes = [], []
    for record in alike:
        training = record["training"] or {}
        evaluated = [e["seconds"] or 0.0 for e in record["evaluations"]]
        seconds.append(training.get("seconds", 0.0) + sum(evaluated))
        sizes.append(training.get("artifact_bytes") or 0)
    return Cost(statistics.fmean(seconds) / 3600, statistics.fmean(sizes), _devices(alike))


def _of_targets(task: Task, records: Sequence[Record]) -> Cost:
    (config,) = configs_of(task)
    alike = [
        record
        for record in _alike(config, records)
        if "seconds" in ((record["training"] or {}).get("teacher_targets") or {})
    ]
    if not alike:
        return UNKNOWN
    stored = [record["training"]["teacher_targets"] for record in alike]
    return Cost(
        statistics.fmean(t["seconds"] for t in stored) / 3600,
        statistics.fmean(t["bytes"] for t in stored),
        _devices(alike),
    )


def _alike(config: RunConfig, records: Sequence[Record]) -> list[Record]:
    """Records of runs that differ in nothing but language, seed and where they ran."""
    hashed = [f.name for f in dataclasses.fields(config) if f.metadata.get("hashed", True)]
    names = [name for name in hashed if name not in _NEVER_ALIKE]
    mine = config.published()
    return [r for r in records if all(r["config"].get(n, mine[n]) == mine[n] for n in names)]


def _estimated(config: RunConfig) -> Cost:
    """What the capacity plan says of a run that nobody has made yet, where there is one."""
    try:
        capacity: Any = importlib.import_module(f"{__package__}.capacity")
    except ModuleNotFoundError:
        return UNKNOWN
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    try:
        found = capacity.estimate(config, device)
    except UserError:  # a device of which it knows nothing
        return UNKNOWN
    hours = math.nan if found.hours is None else found.hours
    return Cost(hours, found.disk_bytes, found.source)


def _sum(costs: Sequence[Cost]) -> Cost:
    sources = dict.fromkeys(cost.source for cost in costs if cost.source)
    return Cost(sum(c.hours for c in costs), sum(c.bytes for c in costs), ", ".join(sources))


def _devices(records: Sequence[Record]) -> str:
    made = [record["provenance"]["hardware"] for record in records]
    named = (m["cpu"] if m["device"] == "cpu" else m["device"] for m in made)
    return ", ".join(sorted(set(named)))


def _number(value: float, digits: int) -> str:
    return "?" if math.isnan(value) else f"{value:.{digits}f}"
