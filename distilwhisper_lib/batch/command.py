"""Run the notebooks in batch with papermill, strictly: here, on all cores, or on a cluster.

A wrong notebook, name, value or setting stops the batch before anything starts.

    python -m distilwhisper_lib batch run --languages ca cs --seeds 77
    python -m distilwhisper_lib batch run 05_js_distillation --overrides '{"max_steps": 2}'
    python -m distilwhisper_lib batch run grid.yaml --cluster
    python -m distilwhisper_lib batch plan --methods js kl --presets cv3k cv10k --languages ca th

grid.py reads a grid, tasks.py makes its tasks and their order, schedule.py runs them, and what
executes one of them is processes.py on this machine or cluster.py with Dask.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distilwhisper_lib.batch.grid import Study, read_grid, studies_of
from distilwhisper_lib.batch.notebooks import find_root
from distilwhisper_lib.batch.processes import Processes
from distilwhisper_lib.batch.progress import Progress, aligned
from distilwhisper_lib.batch.schedule import Summary, run_tasks
from distilwhisper_lib.batch.task import Outcome, Task, claim
from distilwhisper_lib.batch.tasks import METHODS, configs_of
from distilwhisper_lib.batch.tasks import (
    NOTEBOOKS as NOTEBOOKS,  # for those who ask what a batch runs
)
from distilwhisper_lib.batch.tasks import expand as expand_studies
from distilwhisper_lib.capacity import estimate, estimate_targets, known_device
from distilwhisper_lib.config.presets import SEED
from distilwhisper_lib.config.settings import RunConfig
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.facts import DEVICES, Device

_FILES = (".yaml", ".yml")


def expand(
    notebooks: Sequence[str | Path] = (),
    preset: str = "demo",
    languages: Sequence[str] = ("ca",),
    seeds: Sequence[int] = (SEED,),
    overrides: Mapping[str, Any] | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> list[Task]:
    """The tasks of a batch of notebooks, in order; see tasks.expand.

    ``notebooks`` defaults to all of ``root``/notebooks. ``parameters`` are for notebooks that
    declare more than the four; one of the four given there stands for every run of the batch.
    """
    study = Study(tuple(notebooks), preset, languages, seeds, overrides, dict(parameters or {}))
    return expand_studies([study], _root(root))


def run(
    notebooks: Sequence[str | Path] = (),
    preset: str = "demo",
    languages: Sequence[str] = ("ca",),
    seeds: Sequence[int] = (SEED,),
    overrides: Mapping[str, Any] | str | None = None,
    parameters: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    jobs: int = 1,
    root: str | Path | None = None,
    execute: Callable[[Task], Outcome] | None = None,
) -> Summary:
    """Expand and execute a batch, printing one line per run; see ``expand`` for the arguments.

    Runs whose records exist are skipped; ``force`` drops what they worked out and runs them
    again. ``jobs`` notebooks run side by side; failures stop only what needs them. ``execute``
    replaces the default, a process per notebook; see schedule.run_tasks.
    """
    tasks = expand(notebooks, preset, languages, seeds, overrides, parameters, root)
    jobs = _count(jobs)
    return run_tasks(tasks, force=force, jobs=jobs, execute=execute or Processes(jobs))


def _root(root: str | Path | None) -> Path:
    return Path(root).resolve() if root else find_root()


def _count(jobs: Any) -> int:
    if type(jobs) is not int or jobs < 1:
        raise UserError(f"jobs={jobs!r}: expected a whole number from 1")
    return jobs


# --------------------------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 (something failed), 2 (refused) or 130."""
    given = _parser().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's "time is up"
    try:
        tasks = expand_studies(_studies(given), _root(given.root))
        if given.command == "plan":
            from distilwhisper_lib.batch.command import plan  # here, because a run needs no pandas

            print(plan(tasks, given.device))
            return 0
        summary = _run(given, tasks)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the first notebook started
        return 130
    if summary.trouble:
        print(f"error: {summary.trouble}", file=sys.stderr)
    return summary.exit_code


def _run(given: argparse.Namespace, tasks: Sequence[Task]) -> Summary:
    if not (given.cluster or given.scheduler):
        jobs = _count(1 if given.jobs is None else given.jobs)
        return run_tasks(tasks, force=given.force, jobs=jobs, execute=Processes(jobs))
    from distilwhisper_lib.batch.cluster import Cluster

    if given.scheduler and given.jobs is not None:
        raise UserError("--jobs does not go with --scheduler: its workers are as many as they are")
    jobs = None if given.jobs is None else _count(given.jobs)
    progress = Progress(tasks)
    root = Path(tasks[0].root)
    with Cluster(root, given.scheduler, jobs, len(tasks), progress.say) as cluster:
        return run_tasks(
            tasks, force=given.force, jobs=cluster.slots, execute=cluster, progress=progress
        )


def _studies(given: argparse.Namespace) -> list[Study]:
    """What the command line asks for: notebooks, a grid file, or a grid by its keys."""
    lists = {"languages": given.languages, "seeds": given.seeds}
    is_file = [str(name).endswith(_FILES) for name in given.notebooks]
    if any(is_file):
        more = {"--preset": given.preset, "--presets": given.presets, "--methods": given.methods}
        more |= {f"--{name}": value for name, value in lists.items()}
        more |= {"--overrides": given.overrides, "-p": given.parameter or None}
        extra = given.notebooks[1:] or [name for name, value in more.items() if value is not None]
        if extra:
            raise UserError(f"{extra[0]} does not go with a grid file: write it into that file")
        return read_grid(given.notebooks[0])
    if given.preset is not None and given.presets:
        raise UserError("--preset does not go with --presets: name all of them there")
    if given.methods or given.presets:
        if given.notebooks or given.parameter:
            extra = given.notebooks[0] if given.notebooks else "-p"
            raise UserError(
                f"{extra} does not go with --methods and --presets, which choose the notebooks"
            )
        presets = given.presets or ([given.preset] if given.preset is not None else None)
        grid = {"methods": given.methods, "presets": presets, "overrides": given.overrides}
        return studies_of(**grid, **lists)
    four = {"preset": given.preset, "overrides": given.overrides, **lists}
    four = {name: value for name, value in four.items() if value is not None}
    return [Study(tuple(given.notebooks), parameters=dict(given.parameter), **four)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distilwhisper_lib batch",
        description="Run the notebooks in batch with papermill; wrong parameters stop it first.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|plan")
    run_ = commands.add_parser("run", help="run notebooks, or a grid of methods")
    plan = commands.add_parser("plan", help="say what would run, what is done, and what it costs")
    for command in (run_, plan):
        command.add_argument(
            "notebooks",
            nargs="*",
            metavar="NOTEBOOK",
            help='path, name or number ("05"), or one grid.yaml; default all notebooks',
        )
        command.add_argument("--preset", metavar="NAME", help="default demo")
        command.add_argument("--presets", nargs="+", metavar="NAME")
        command.add_argument(
            "--methods", nargs="+", metavar="METHOD", help="a grid: these methods and the tables"
        )
        command.add_argument("--languages", nargs="+", metavar="CODE", help="default ca")
        command.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default 77")
        command.add_argument("--overrides", metavar="JSON", help='{"max_steps": 2}')
        command.add_argument(
            "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
        )
        command.add_argument("--root", metavar="FOLDER", help="the checkout")
    plan.add_argument("--device", metavar="NAME", help="t4, a100, ...; default this machine")
    run_.add_argument("--force", action="store_true", help="run finished runs again")
    run_.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="notebooks side by side, default 1; all on one GPU, unless with --cluster",
    )
    where = run_.add_mutually_exclusive_group()
    where.add_argument(
        "--cluster", action="store_true", help="a Dask cluster sized to this machine"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask cluster: tcp://host:port")
    return parser


if __name__ == "__main__":
    sys.exit(main())


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
