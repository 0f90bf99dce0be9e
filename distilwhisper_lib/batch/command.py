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
from typing import Any

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
from distilwhisper_lib.config.presets import SEED
from distilwhisper_lib.config.settings import Record, RunConfig, locate, setting_of
from distilwhisper_lib.errors import UserError
from distilwhisper_lib.results.places import find_records
from distilwhisper_lib.results.provenance import device_name

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

            print(plan(tasks))
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


def plan(tasks: Sequence[Task]) -> str:
    """A table of the tasks in order: state, needs, hours; then what is left to do in all, and which
    runs the models that lie here cannot do.

    state: "done"; "begun", which goes on from a checkpoint; "running" in another process; "to do".
    Hours are those of a record of the same method and model that was made on a machine like this
    one, for as many clips; "?" where there is none (``python -m benchmarks.cost`` estimates such).
    """
    with contextlib.chdir(tasks[0].root):  # where records and models are looked for
        hours, refused = _hours(tasks), _refused([t for t in tasks if not t.is_finished])
    rows = [["", "task", "needs", "hours", "as"]]
    left: list[float] = []
    for task, (its, source) in zip(tasks, hours, strict=True):
        state = _state(task)
        shown = "?" if math.isnan(its) else f"{its:.3f}"
        rows.append([state, task.name, _order(task), shown, source])
        if state != "done":
            left.append(its)
    known = [its for its in left if not math.isnan(its)]
    told = f"{len(left)} of {len(tasks)} tasks are left"
    told += f": {sum(known):.2f} hours" if known else ""
    if unknown := len(left) - len(known):
        told += f"; nothing is known of {unknown}" + (" of them" if known else "")
    return "\n".join([aligned(rows), "", f"{told}.", *refused])


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


def _refused(tasks: Sequence[Task]) -> list[str]:
    """A line for each task whose models, where all of them are folders here, cannot do its runs."""
    from distilwhisper_lib.model.checkpoint import check_models  # seconds: transformers

    lines, known = [], {}
    for task in tasks:
        for config in configs_of(task):
            named = [config.student, config.teacher][: 1 + config.needs_teacher]
            if not all(Path(locate(name)).is_dir() for name in named):
                continue  # the hub is asked when the run begins
            names = ("language", "speaks_as", "forgetting", "window_seconds")
            key = (*named, *(getattr(config, name) for name in names))
            if key not in known:
                known[key] = ""
                try:
                    check_models(config)
                except UserError as error:
                    known[key] = str(error)
            if known[key]:
                lines.append(f"{task.name} cannot start: {known[key]}.")
                break
    return lines


def _hours(tasks: Sequence[Task]) -> list[tuple[float, str]]:
    """Of each task, and whose they are; runs that several data notebooks share are the first's."""
    records: dict[Path, list[Record]] = {}
    found, seen, here = [], set(), device_name()
    for task in tasks:
        if not task.notebook or not METHODS.get(Path(task.notebook).stem):
            found.append((math.nan, ""))  # teacher targets, tables: no record tells of them alone
            continue
        mine = [c for c in configs_of(task) if c.run_id not in seen]
        seen |= {config.run_id for config in mine}
        like = []
        for config in mine:
            folder = config.results_dir
            if folder not in records:
                both = find_records(folder, published=True).records
                records[folder] = [r for r in both if r["provenance"]["hardware"]["device"] == here]
            like.append(_like(config, records[folder]))
        names = ", ".join(r["run_id"] for r in like if r)
        known = [_took(config, r) for config, r in zip(mine, like, strict=True)]
        found.append((sum(known) / 3600, names))
    return found


def _like(config: RunConfig, records: Sequence[Record]) -> Record | None:
    """The record that says most of a run: same method and models, nearest in training clips."""
    model = "student" if config.method != "teacher" else "teacher"
    same = ("method", model, "window_seconds", "window", "pack")
    told = config.published()
    fitting = [r for r in records if all(setting_of(r, n) == told[n] for n in same)]
    wanted = config.train_size or math.inf
    return min(fitting, key=lambda r: abs(_clips(r) - wanted), default=None)


def _clips(record: Record) -> int:
    return (record["data"]["train"] or {}).get("clips", 0)


def _took(config: RunConfig, record: Record | None) -> float:
    """Seconds: training by passes over clips, tests as they were; NaN without a record."""
    if record is None:
        return math.nan
    tests = sum(e["seconds"] or math.nan for e in record["evaluations"])
    training = record["training"]
    if training is None:
        return tests
    passes = training["epochs"] * _clips(record)
    wanted = config.epochs * (config.train_size or _clips(record))
    return tests + training["seconds"] * (wanted / passes if passes else 1)
